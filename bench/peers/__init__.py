"""Contenders that are not this project; ``setup.sh`` installs what it does not depend on."""
