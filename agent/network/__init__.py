"""How nodes reach each other: MQTT, mDNS, membership, and an in-memory transport for tests."""
