"""Tests of the pure core: modules one by one, then whole fleets of machines on a virtual clock."""
