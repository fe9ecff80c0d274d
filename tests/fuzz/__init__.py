"""All parsers of bytes from outside: hostile input, random input, and what they keep of it."""
