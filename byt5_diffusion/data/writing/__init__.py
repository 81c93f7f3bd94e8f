"""Text as pictures: strings, fonts, shaping, typesetting, captions."""
