"""JPEG decoding, resizing and normalising in compiled code: the only room that knows C."""
