"""Methods that build synthetic images, one file each."""
