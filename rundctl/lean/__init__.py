"""The little that every call needs of dear modules of the standard library, without what importing those costs.

Each module here has the name of the one that it stands in for, and does the same for what it has: tests/contract runs both against one suite. Type
checkers see the standard one. Who needs more of it imports that instead, where it is needed. Figures: docs/adr/0008-imports.md.
"""
