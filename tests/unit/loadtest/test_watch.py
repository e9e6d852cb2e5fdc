"""The server's numbers, from what its metrics port says."""

from loadtest.watch import ServerNumbers, between, parse, total

BEFORE = """\
# HELP vla_stage_seconds Torchserve prometheus histogram metric with unit: s
# TYPE vla_stage_seconds histogram
vla_stage_seconds_bucket{stage="inference",Hostname="host",le="0.005",} 1.0
vla_stage_seconds_count{stage="inference",Hostname="host",} 10.0
vla_stage_seconds_sum{stage="inference",Hostname="host",} 0.5
vla_batch_requests_count{Hostname="host",} 10.0
vla_batch_requests_sum{Hostname="host",} 12.0
vla_command_cache_total{result="hit",Hostname="host",} 11.0
vla_command_cache_total{result="miss",Hostname="host",} 1.0
# TYPE vla_deadline_misses_total counter
"""
AFTER = """\
vla_stage_seconds_count{stage="inference",Hostname="host",} 30.0
vla_stage_seconds_sum{stage="inference",Hostname="host",} 0.9
vla_stage_seconds_count{stage="queue",Hostname="host",} 4.0
vla_stage_seconds_sum{stage="queue",Hostname="host",} 0.002
vla_batch_requests_count{Hostname="host",} 30.0
vla_batch_requests_sum{Hostname="host",} 92.0
vla_command_cache_total{result="hit",Hostname="host",} 87.0
vla_command_cache_total{result="miss",Hostname="host",} 5.0
vla_deadline_misses_total{Hostname="host",} 3.0
vla_request_errors_total{code="deadline_expired",Hostname="host",} 3.0
vla_request_errors_total{code="bad_image",Hostname="host",} 2.0E0
vla_safety_interventions_total{action="clamped",Hostname="host",} 7.0
vla_memory_bytes{kind="resident",worker="12",Hostname="host",} 2.5E8
vla_memory_bytes{kind="resident",worker="13",Hostname="host",} 1.5E8
"""


def test_numbers_are_what_was_added_between_two_readings() -> None:
    assert between(parse(BEFORE), parse(AFTER)) == ServerNumbers(
        stages_ms={"inference": 20.0, "queue": 0.5},
        batches=20,
        batch_size=4.0,
        command_cache_hits=0.95,
        deadline_misses=3,
        safety_interventions={"clamped": 7},
        errors={"bad_image": 2, "deadline_expired": 3},
    )


def test_idle_server_has_no_means() -> None:
    assert between(parse(AFTER), parse(AFTER)) == ServerNumbers({}, 0, None, None, 0, {}, {})


def test_memory_of_all_workers_is_summed() -> None:
    assert total(parse(AFTER), "vla_memory_bytes", kind="resident") == 4e8
    assert total(parse(AFTER), "vla_memory_bytes", kind="accelerator") == 0
