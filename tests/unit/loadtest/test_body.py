"""What is sent: requests in the two forms that the server reads."""

from email.parser import BytesParser

import msgspec

from loadtest.body import FORM, form, packed


def test_form_is_multipart() -> None:
    body = form({"image.front": b"\xff\xd8\r\n--"}, {"command": "push the réd block", "state": [0.5, -1]})

    parsed = BytesParser().parsebytes(f"Content-Type: {FORM}\r\n\r\n".encode() + body)

    _, *parts = parsed.walk()
    assert [part.get_param("name", header="Content-Disposition") for part in parts] == [
        "image.front",
        "command",
        "state",
    ]
    assert parts[0].get_payload(decode=True) == b"\xff\xd8\r\n--"
    assert parts[1].get_payload(decode=True) == "push the réd block".encode()
    assert parts[2].get_payload() == "[0.5,-1]"


def test_packed_is_one_map() -> None:
    body = packed({"image": b"\xff\xd8"}, {"command": "go", "state": [0.5]})

    assert msgspec.msgpack.decode(body) == {"image": b"\xff\xd8", "command": "go", "state": [0.5]}
