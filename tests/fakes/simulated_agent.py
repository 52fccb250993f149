"""An agent and its trainer in one coroutine, over the real agents' API, without any process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from datetime import UTC, datetime
from typing import Any

import httpx
from fastapi import FastAPI

from worker.protocol import (
    PROTOCOL_VERSION,
    AgentReport,
    AttemptSpec,
    CheckpointAccepted,
    CheckpointOffer,
    CheckpointWritten,
    Command,
    DrainTrainer,
    Envelope,
    HostFacts,
    KillTrainer,
    Register,
    Registered,
    ReportAnswer,
    Retire,
    StartTrainer,
    StepBeat,
    StepCompleted,
    TrainerExited,
    TrainerFinished,
    TrainerStarted,
)

STEPS_A_REPORT = 25


class Refusal(Exception):
    """The control plane said no."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {problem}")
        self.status = status
        self.problem = problem


class SimulatedAgent:
    """`crash_at` maps an attempt's number to the step at which its trainer dies of a SIGKILL."""

    def __init__(self, app: FastAPI, group: str, host: int, secret: str) -> None:
        self.crash_at: dict[int, int] = {}
        self.instance = secrets.token_hex(8)
        self.running: int | None = None
        self.started: list[AttemptSpec] = []
        self.killed: list[KillTrainer] = []
        self.seen: list[Command] = []
        self._group, self._host = group, host
        self._seq = 0
        self._ports = itertools.count(5000)
        self._fence = 0
        self._known = ""
        self._answer_at: datetime | None = None
        self._drain = False
        self._trainer: asyncio.Task[None] | None = None
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://plane",
            headers={"Authorization": f"Bearer {secret}"},
        )

    async def live(self) -> None:
        """Until retired or refused."""
        try:
            await self.register()
            while True:
                answer = await self.report(wait_seconds=5.0)
                self._known = answer.commands_digest
                if any(isinstance(command, Retire) for command in answer.commands):
                    return
                for command in answer.commands:
                    await self._obey(command)
        except Refusal:
            return
        finally:
            await self.close()

    async def close(self) -> None:
        if self._trainer is not None:
            self._trainer.cancel()
            with contextlib.suppress(asyncio.CancelledError, Refusal):
                await self._trainer
        await self._client.aclose()

    async def call(self, name: str, body: Any) -> dict[str, Any]:
        response = await self._client.post(
            f"/api/v1/agents/{name}",
            content=body.model_dump_json(),
            headers={"Content-Type": "application/json"},
        )
        if response.status_code != 200:
            raise Refusal(response.status_code, response.json())
        return response.json()

    async def register(self) -> Registered:
        facts = HostFacts(
            hostname="h",
            address="127.0.0.1",
            free_port=4000 + self._host,
            cpus=1,
            memory_bytes=1,
            disk_free_bytes=1,
            python="3",
        )
        call = Register(
            protocol=PROTOCOL_VERSION,
            group=self._group,
            host=self._host,
            instance=self.instance,
            facts=facts,
        )
        answer = Registered.model_validate(await self.call("register", call))
        self._seq, self._answer_at = answer.acked_seq, answer.at
        return answer

    async def report(
        self, *events: Any, attempt: int = 0, wait_seconds: float = 0.0, known: str | None = None
    ) -> ReportAnswer:
        call = AgentReport(
            group=self._group,
            host=self._host,
            instance=self.instance,
            events=tuple(self._envelope(event, attempt) for event in events),
            running_attempt=self.running,
            free_port=next(self._ports),
            wait_seconds=wait_seconds,
            known_commands=self._known if known is None else known,
            answered_at=self._answer_at,
        )
        answer = ReportAnswer.model_validate(await self.call("report", call))
        self._answer_at = answer.at
        return answer

    def _envelope(self, event: Any, attempt: int) -> Envelope:
        self._seq += 1
        at = datetime.now(UTC)
        return Envelope(
            seq=self._seq, attempt=attempt, rank=self._host, at=at, mono=0.0, event=event
        )

    async def _obey(self, command: Command) -> None:
        self.seen.append(command)
        match command:
            case StartTrainer() if command.spec.attempt > self._fence:
                self._fence = command.spec.attempt
                self.running = self._fence
                self.started.append(command.spec)
                self._trainer = asyncio.create_task(self._train(command.spec))
            case DrainTrainer():
                self._drain = True
            case KillTrainer():
                self.killed.append(command)
                await self._kill(command)
            case _:
                pass

    async def _kill(self, command: KillTrainer) -> None:
        if self.running is not None and self._trainer is not None:
            self._trainer.cancel()
            self.running = None
            exited = TrainerExited(
                exit_code=None, signal=9, killed_by_agent=True, why_killed=command.reason
            )
            await self.report(exited, attempt=command.attempt)

    async def _train(self, spec: AttemptSpec) -> None:
        """Steps in strides, a checkpoint after each, the end as the spec says."""
        number = spec.attempt
        step = spec.resume.step if spec.resume else 0
        await self.report(TrainerStarted(pid=1), attempt=number)
        while step < spec.job.steps and not self._drain:
            told: list[Any] = []
            for _ in range(STEPS_A_REPORT):
                step += 1
                if step == self.crash_at.get(number):
                    await self._exit(spec, *told, signal=9)
                    return
                told.append(self._stepped(step))
            await self.report(*told, attempt=number)
            if self._host == 0:
                await self.save(spec, step)
        finished = TrainerFinished(step=step, drained=self._drain)
        await self._exit(spec, finished, exit_code=75 if self._drain else 0)

    async def _exit(
        self, spec: AttemptSpec, *told: Any, exit_code: int | None = None, signal: int | None = None
    ) -> None:
        self.running, self._drain = None, False
        exited = TrainerExited(exit_code=exit_code, signal=signal)
        await self.report(*told, exited, attempt=spec.attempt)

    def _stepped(self, step: int) -> StepCompleted | StepBeat:
        if self._host:
            return StepBeat(step=step, seconds=0.1, data_wait=0.0)
        return StepCompleted(
            step=step,
            loss=1.0 / step,
            grad_norm=1.0,
            learning_rate=0.1,
            tokens=2048,
            seconds=0.1,
            data_wait=0.0,
            batch_hash=f"{step:016x}",
        )

    async def save(self, spec: AttemptSpec, step: int) -> CheckpointAccepted:
        written = CheckpointWritten(
            checkpoint_id=spec.checkpoint_id(step),
            step=step,
            uri=spec.checkpoint_uri(step),
            bytes=1,
            files=1,
            manifest_sha256="a" * 64,
            state_digest="b" * 64,
            stall_seconds=0.0,
            write_seconds=0.0,
        )
        await self.report(written, attempt=spec.attempt)
        offer = CheckpointOffer(
            group=self._group,
            host=self._host,
            instance=self.instance,
            run_id=spec.run_id,
            attempt=spec.attempt,
            checkpoint=written,
        )
        return CheckpointAccepted.model_validate(await self.call("checkpoints", offer))
