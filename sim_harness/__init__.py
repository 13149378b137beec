"""Fleets on one machine: scenarios, planning, live runs and their reports."""
