"""Admin command dispatch: each opcode's handler, and how a command ends (Base 2.0, section 5)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from shadowbell.dataplane import DmaError, TransferError
from shadowbell.nvme import AdminOpcode, Status
from shadowbell.nvme.commands import Psdt

from .command import Command, CommandError, completion_status, invalid_field, location
from .engine import Engine
from .error_log import ErrorLog
from .events import AsyncEvents
from .features import Features
from .identify import Identify
from .logs import Logs
from .queues import Queues

log = logging.getLogger("shadowbell")

Handler = Callable[[Command], int | None]
"""Does a command and returns completion dword 0, or None when it completes later."""


class AdminCommands:
    """The admin queue's commands for one controller."""

    def __init__(
        self,
        engine: Engine,
        *,
        errors: ErrorLog,
        events: AsyncEvents,
        features: Features,
        identify: Identify,
        logs: Logs,
        queues: Queues,
        dbbuf: bool,
    ) -> None:
        self._engine = engine
        self._errors = errors
        self._events = events
        self._features = features
        self._identify = identify
        self._logs = logs
        self._queues = queues
        self._handlers: dict[int, Handler] = {
            AdminOpcode.DELETE_IO_SUBMISSION_QUEUE: _without_result(queues.delete_submission),
            AdminOpcode.CREATE_IO_SUBMISSION_QUEUE: _without_result(queues.create_submission),
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.DELETE_IO_COMPLETION_QUEUE: _without_result(queues.delete_completion),
            AdminOpcode.CREATE_IO_COMPLETION_QUEUE: _without_result(queues.create_completion),
            AdminOpcode.IDENTIFY: self._identify_command,
            AdminOpcode.ABORT: self._abort,
            AdminOpcode.SET_FEATURES: self._set_features,
            AdminOpcode.GET_FEATURES: self._get_features,
            AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST: self._asynchronous_event_request,
        }
        if dbbuf:
            self._handlers[AdminOpcode.DOORBELL_BUFFER_CONFIG] = _without_result(
                queues.doorbell_buffer_config
            )

    def opcodes(self) -> set[AdminOpcode]:
        """The supported commands."""
        return {AdminOpcode(opcode) for opcode in self._handlers}

    def execute(self, raw: bytes) -> None:
        """Do a 64-byte command and complete it; a failure ends the command and nothing else."""
        command = Command(raw)
        try:
            result = self._dispatch(command)
        except CommandError as error:
            self._fail(command, error.status, error.location)
        except TransferError as error:
            self._fail(command, error.status, location(6))
        except DmaError:
            self._fail(command, Status.DATA_TRANSFER_ERROR, location(6))
        except Exception:
            log.exception("admin command %#x failed", command.sqe.opcode)
            self._fail(command, Status.INTERNAL_ERROR)
        else:
            if result is not None:
                self._engine.complete_admin(command.sqe.cid, 0, result)

    def _dispatch(self, command: Command) -> int | None:
        handler = self._handlers.get(command.sqe.opcode)
        if handler is None:
            raise CommandError(Status.INVALID_COMMAND_OPCODE, 0)
        if command.sqe.fuse:
            raise CommandError(Status.INVALID_FIELD_IN_COMMAND, 1)
        if command.sqe.psdt != Psdt.PRP:
            # Over PCIe an admin command has no SGLs (section 4.1.2).
            raise CommandError(Status.INVALID_FIELD_IN_COMMAND, 1 | 6 << 8)
        return handler(command)

    def _fail(self, command: Command, status: int, where: int = 0xFFFF) -> None:
        full = completion_status(status)
        sqe = command.sqe
        self._errors.add(full, sqid=0, cid=sqe.cid, location=where, nsid=sqe.nsid)
        self._engine.complete_admin(sqe.cid, full)

    def _get_log_page(self, command: Command) -> int:
        self._engine.write_data(command.raw, self._logs.data(command))
        self._logs.finish(command)
        return 0

    def _identify_command(self, command: Command) -> int:
        self._engine.write_data(command.raw, self._identify.data(command))
        return 0

    def _abort(self, command: Command) -> int:
        """Abort (section 5.1): 0 when aborted, 1 when not.

        Only parked requests are ever aborted: all other commands are on their way already. The
        limit on Abort commands can't be passed, for each ends before the next is fetched.
        """
        sqid, cid = command.bits(10, 15, 0), command.bits(10, 31, 16)
        if not self._queues.has_submission(sqid):
            raise invalid_field(10)
        return 0 if sqid == 0 and self._events.abort(cid) else 1

    def _set_features(self, command: Command) -> int:
        return self._features.set(
            command, lambda length: self._engine.read_data(command.raw, length)
        )

    def _get_features(self, command: Command) -> int:
        result, data = self._features.get(command)
        if data:
            self._engine.write_data(command.raw, data)
        return result

    def _asynchronous_event_request(self, command: Command) -> None:
        self._events.park(command.sqe.cid)


def _without_result(action: Callable[[Command], None]) -> Handler:
    def handler(command: Command) -> int:
        action(command)
        return 0

    return handler
