"""What a part of the bench yields."""

Line = tuple[str, str]
"""What was measured, and the result in words."""
