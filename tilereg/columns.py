"""Which column of a table is what: positions, the class of a spot, how far it is believed."""

from __future__ import annotations

from dataclasses import dataclass

from tilereg.errors import InputError
from tilereg.grid import AXES

__all__ = ["Columns"]

_ROLES = (*AXES, "class", "weight")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a table of spots.

    Parameters
    ----------
    axes : tuple of str, optional
        Those of the positions, in the order z, y, x, or y, x. None: z, y, x where there is a z,
        else y, x.
    spot_class : str, optional
        That of the class of each spot. None: spots have none.
    weight : str, optional
        That of the weight of each spot. None: all have the same.
    """

    axes: tuple[str, ...] | None = None
    spot_class: str | None = None
    weight: str | None = None

    @classmethod
    def parse(cls, text: str) -> Columns:
        """Read what is what from a text, as in ``z=centroid-0,y=centroid-1,x=centroid-2``.

        Parameters
        ----------
        text : str
            Pairs of a role and a name, separated by commas. Roles are z, y, x, class and weight.

        Raises
        ------
        InputError
            If the text is not of this form, a role is unknown or there twice, or one of y and x
            is named without the other.

        Examples
        --------
        >>> Columns.parse("y=axis-0, x=axis-1, class=gene").axes
        ('axis-0', 'axis-1')
        """
        names: dict[str, str] = {}
        for part in text.split(","):
            role, equals, name = (piece.strip() for piece in part.partition("="))
            if not equals or not name or role not in _ROLES or role in names:
                raise InputError(
                    f"Invalid columns '{text}': '{part.strip()}' is not understood. Write each of "
                    f"{', '.join(_ROLES)} at most once, as in z=centroid-0,y=centroid-1,"
                    "x=centroid-2,class=gene."
                )
            names[role] = name
        given = tuple(axis for axis in AXES if axis in names)
        if given and given not in (AXES, AXES[1:]):
            raise InputError(
                f"Invalid columns '{text}': they name {', '.join(given)} alone. Name z, y and x, "
                "or y and x where spots lie in a plane."
            )
        axes = tuple(names[axis] for axis in given)
        return cls(axes=axes or None, spot_class=names.get("class"), weight=names.get("weight"))
