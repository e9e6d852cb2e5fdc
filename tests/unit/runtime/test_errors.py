"""What a client can rely on: each error's status and code, and text that can be sent."""

import pytest

from vla_runtime import errors

CONTRACT = {
    errors.MissingField: (400, "missing_field"),
    errors.UnknownField: (400, "unknown_field"),
    errors.MalformedBody: (400, "malformed_body"),
    errors.BadImage: (400, "bad_image"),
    errors.TooLarge: (413, "too_large"),
    errors.UnsupportedMediaType: (415, "unsupported_media_type"),
    errors.InvalidValue: (422, "invalid_value"),
    errors.Overloaded: (503, "overloaded"),
    errors.UnsafeAction: (503, "unsafe_action"),
    errors.PolicyFailed: (503, "policy_failed"),
    errors.DeadlineExpired: (504, "deadline_expired"),
}


def test_the_contract_names_every_error() -> None:
    assert set(CONTRACT) == set(errors.RequestError.__subclasses__()) - {errors.Later}
    assert (errors.RequestError.status, errors.RequestError.code) == (400, "bad_request")


@pytest.mark.parametrize(("kind", "status", "code"), [(kind, *pair) for kind, pair in CONTRACT.items()])
def test_an_error_is_its_status_code_field_and_message(
    kind: type[errors.RequestError], status: int, code: str
) -> None:
    error = kind("image", "is empty")

    assert (error.status, str(error)) == (status, "is empty")
    assert error.body() == {"error": {"code": code, "field": "image", "message": "is empty"}}
    assert kind(None, "is empty").body()["error"] == {"code": code, "field": None, "message": "is empty"}


def test_half_a_surrogate_pair_is_replaced() -> None:
    error = errors.UnknownField("a\udfffb", "got \ud800")

    assert (error.field, error.message) == ("a?b", "got ?")
