"""The queue before the engine: limits, fairness, priorities, timeouts."""

from __future__ import annotations

import asyncio
import random

import pytest

from puna.server.errors import ApiError
from puna.server.guard.admission import Admission, AdmissionSettings


def run(coroutine):
    return asyncio.run(coroutine)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Queue:
    """Records the order in which requests are admitted."""

    def __init__(self, slots=1, **settings):
        self.admission = Admission(slots, AdmissionSettings(**settings))
        self.order: list[str] = []
        self.tickets: dict[str, object] = {}

    async def send(self, name, caller="a", **options):
        async def enter():
            self.tickets[name] = await self.admission.enter(caller, **options)
            self.order.append(name)

        task = asyncio.ensure_future(enter())
        await settle()
        return task

    async def end(self, name):
        self.admission.leave(self.tickets[name])
        await settle()

    async def drain(self):
        """Ends the requests one by one, in the order of their admission."""
        position = 0
        while position < len(self.order):
            await self.end(self.order[position])
            position += 1


def test_requests_of_one_caller_run_in_the_order_of_arrival():
    async def main():
        queue = Queue(slots=2)
        for name in "pqrst":
            await queue.send(name)
        assert queue.order == ["p", "q"] and len(queue.admission.waiting) == 3
        await queue.drain()
        assert queue.order == ["p", "q", "r", "s", "t"]
        assert queue.admission.free == 2 and not queue.admission._origins

    run(main())


def test_a_caller_with_many_requests_does_not_delay_others():
    async def main():
        queue = Queue(slots=1)
        for index in range(6):
            await queue.send(f"a{index}")
        for index in range(3):
            await queue.send(f"b{index}", "b")
        await queue.drain()
        assert queue.order == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "a4", "a5"]

    run(main())


def test_slots_are_divided_equally():
    async def main():
        queue = Queue(slots=4)
        for index in range(8):
            await queue.send(f"a{index}")
        for index in range(8):
            await queue.send(f"b{index}", "b")
        for name in ("a0", "a1"):
            await queue.end(name)
        assert queue.order == ["a0", "a1", "a2", "a3", "b0", "b1"]
        await queue.end("b0")
        assert queue.order[-1] == "b2"

    run(main())


@pytest.mark.parametrize(
    ("fair_by", "order"),
    [
        ("user", ["x0", "y0", "x1", "y1"]),
        ("key", ["x0", "x1", "y0", "y1"]),
        ("none", ["x0", "x1", "y0", "y1"]),
    ],
)
def test_fairness_may_depend_on_the_user_of_a_request(fair_by, order):
    async def main():
        queue = Queue(slots=1, fair_by=fair_by)
        for name in ("x0", "x1", "y0", "y1"):
            await queue.send(name, user=name[0])
        await queue.drain()
        assert queue.order == order

    run(main())


def test_a_user_name_cannot_take_the_place_of_another_callers_user():
    async def main():
        queue = Queue(slots=1, fair_by="user", per_caller=1)
        await queue.send("x", "alice", user="u")
        await queue.send("y", "bob", user="u")
        assert len(queue.admission.waiting) == 1

    run(main())


def test_lower_priority_numbers_come_first():
    async def main():
        queue = Queue(slots=1)
        await queue.send("first")
        for name, priority in (("low", 5), ("normal", 0), ("high", -5), ("high-b", -5)):
            await queue.send(name, "b" if name == "high-b" else "a", priority=priority)
        await queue.drain()
        assert queue.order == ["first", "high-b", "high", "normal", "low"]

    run(main())


def test_a_large_request_is_not_overtaken():
    async def main():
        queue = Queue(slots=4)
        await queue.send("p", size=3)
        await queue.send("large", size=100)
        await queue.send("small", size=1)
        assert queue.order == ["p"]
        await queue.end("p")
        assert queue.order == ["p", "large"] and queue.admission.free == 0
        await queue.end("large")
        assert queue.order[-1] == "small"

    run(main())


def test_a_full_queue_refuses_with_the_time_to_wait():
    async def main():
        queue = Queue(slots=1, queue=2)
        for name in "pqr":
            await queue.send(name)
        with pytest.raises(ApiError) as caught:
            await queue.admission.enter("b")
        error = caught.value
        assert error.status == 429 and error.code == "rate_limit_exceeded"
        assert 1 <= int(error.headers["Retry-After"]) <= 60
        await queue.end("p")
        await queue.send("s", "b")
        assert len(queue.admission.waiting) == 2

    run(main())


def test_a_queue_of_no_places_still_admits_to_free_slots():
    async def main():
        queue = Queue(slots=1, queue=0)
        await queue.send("p")
        assert queue.order == ["p"]
        with pytest.raises(ApiError, match="limit is 0"):
            await queue.admission.enter("a")

    run(main())


@pytest.mark.parametrize("fair_by", ["key", "user", "none"])
def test_a_caller_may_have_a_limited_number_of_requests(fair_by):
    async def main():
        queue = Queue(slots=1, per_caller=2, fair_by=fair_by)
        await queue.send("p")
        await queue.send("q")
        with pytest.raises(ApiError) as caught:
            await queue.admission.enter("a")
        assert caught.value.status == 429 and "2 unfinished requests" in caught.value.message
        await queue.send("r", "b")
        await queue.drain()
        assert sorted(queue.order) == ["p", "q", "r"]
        await queue.send("s")
        assert queue.order[-1] == "s"

    run(main())


def test_a_request_that_waits_too_long_is_refused():
    async def main():
        queue = Queue(slots=1, queue_seconds=0.02)
        await queue.send("p")
        with pytest.raises(ApiError) as caught:
            await queue.admission.enter("b")
        assert caught.value.status == 408 and caught.value.headers["Retry-After"]
        assert queue.admission.waiting == [] and queue.admission.free == 0
        await queue.drain()
        assert queue.admission.free == 1 and not queue.admission._origins

    run(main())


def test_a_client_that_disconnects_leaves_the_queue():
    async def main():
        queue = Queue(slots=1)
        await queue.send("p")
        task = await queue.send("q")
        await queue.send("r")
        task.cancel()
        await settle()
        assert len(queue.admission.waiting) == 1
        await queue.drain()
        assert queue.order == ["p", "r"] and queue.admission.free == 1

    run(main())


def test_a_client_that_disconnects_in_the_moment_of_its_admission_frees_the_slot():
    async def main():
        queue = Queue(slots=1)
        await queue.send("p")
        task = await queue.send("q")
        queue.admission.leave(queue.tickets["p"])  # admits q, whose task has not run yet
        task.cancel()
        await settle()
        assert queue.admission.free == 1 and not queue.admission.running

    run(main())


def test_leaving_twice_changes_nothing():
    async def main():
        admission = Admission(2)
        ticket = await admission.enter("a")
        admission.leave(ticket)
        admission.leave(ticket)
        assert admission.free == 2

    run(main())


def test_retry_after_follows_the_measured_times(monkeypatch):
    async def main():
        now = [0.0]
        monkeypatch.setattr("puna.server.guard.admission.time.perf_counter", lambda: now[0])
        admission = Admission(1)
        for _ in range(100):
            ticket = await admission.enter("a")
            now[0] += 4.0
            admission.leave(ticket)
        assert admission.retry_after() == 4
        await admission.enter("a")
        waiting = [asyncio.ensure_future(admission.enter("a")) for _ in range(3)]
        await settle()
        assert admission.retry_after() == 16
        for task in waiting:
            task.cancel()

    run(main())


def test_no_slot_is_lost_over_random_schedules():
    async def main(seed):
        choose = random.Random(seed)
        queue = Queue(slots=5, queue=20, per_caller=12)
        tasks = []
        for index in range(300):
            action = choose.random()
            active = [name for name in queue.order if queue.tickets[name] in queue.admission.running]
            if action < 0.5:
                options = {"priority": choose.randint(-1, 1), "size": choose.randint(1, 7)}
                tasks.append(await queue.send(f"r{index}", choose.choice("abc"), **options))
            elif action < 0.8 and active:
                await queue.end(choose.choice(active))
            elif tasks:
                choose.choice(tasks).cancel()
                await settle()
            running = sum(ticket.size for ticket in queue.admission.running)
            assert running + queue.admission.free == 5 and len(queue.admission.waiting) <= 20
        for task in tasks:
            task.cancel()
        await settle()
        for ticket in list(queue.admission.running):
            queue.admission.leave(ticket)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert queue.admission.free == 5 and not queue.admission._origins and not queue.admission.waiting

    for seed in range(4):
        run(main(seed))
