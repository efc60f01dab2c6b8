"""Enumerations: named values of one type, found by name and by value. The standard module costs as much as half an interpreter's start.

The members of a class are its names in capitals. They are not kept from being changed; type checkers see to that.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum, IntEnum
else:

    class _Members(type):
        """The class of enumerations: makes each name in capitals a member, and finds members."""

        def __init__(cls, name, bases, namespace):
            super().__init__(name, bases, namespace)
            cls._members = {}
            for key, value in namespace.items():
                if key.isupper():
                    member = cls.__new__(cls, value) if issubclass(cls, int) else cls.__new__(cls)
                    member.name, member.value = key, value
                    cls._members[key] = member
                    setattr(cls, key, member)

        def __call__(cls, value):
            for member in cls:
                if member.value == value:
                    return member
            raise ValueError(f"{value!r} is not a valid {cls.__qualname__}")

        def __getitem__(cls, name):
            return cls._members[name]

        def __iter__(cls):
            return iter(cls._members.values())

        def __len__(cls):
            return len(cls._members)

    class Enum(metaclass=_Members):
        """A member has a ``name`` and a ``value``; it is equal to itself alone."""

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __str__(self):
            return f"{type(self).__name__}.{self.name}"

    class IntEnum(int, Enum):
        """A member is an integer, too."""

        __repr__ = Enum.__repr__
        __str__ = int.__repr__


__all__ = ["Enum", "IntEnum"]
