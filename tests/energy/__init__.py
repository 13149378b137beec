"""Tests of agent.energy."""
