"""Sizes and other small values as people write them."""

from shadowbell.config.kinds import MAX_SIZE, PollMax
from shadowbell.errors import UserError

UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}


def parse_poll_max(text: str) -> PollMax:
    """A polling window: microseconds, or "busy". Raises UserError."""
    if text == "busy":
        return "busy"
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise UserError(f"bad polling window {text!r}: give microseconds (0: none) or busy")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes of "4096", "512M", "1.5G" or "1GiB". Units are powers of 1024. Raises UserError."""
    number, unit = text.strip(), ""
    for index, character in enumerate(number):
        if not (character.isascii() and (character.isdigit() or character == ".")):
            number, unit = number[:index], number[index:].strip()
            break
    whole, _, fraction = number.partition(".")
    if len(number) > 32:
        raise UserError(f"bad size {text!r}: it has too many digits")
    exponent = UNITS.get(unit.upper().removesuffix("IB") if len(unit) == 3 else unit.upper())
    if exponent is None or not whole.isdigit() or ("." in number and not fraction.isdigit()):
        raise UserError(f"bad size {text!r}: write a number and K, M, G, T or P, such as 512M")
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) << exponent, scale)
    if rest:
        raise UserError(f"bad size {text!r}: it isn't a whole number of bytes")
    if not 0 < size <= MAX_SIZE:
        raise UserError(f"bad size {text!r}: it must be between 1 and {MAX_SIZE} bytes")
    return size
