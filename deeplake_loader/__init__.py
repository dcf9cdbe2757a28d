"""A database you can train from (the public names arrive with the facade)."""

import os as _os

# In a checkout the folder kernels/ lies beside this package; installed, setup.py has put it inside.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.isfile(_os.path.join(_root, "setup.py")) and _os.path.isfile(_os.path.join(_root, "kernels", "__init__.py")):
    __path__.append(_root)
