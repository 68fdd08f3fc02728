"""Double of rios.cuiprogress."""
from double_grid import CUIProgressBar  # noqa: F401
