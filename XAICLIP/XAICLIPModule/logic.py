"""The logic of the module: asks the worker, and turns what it answers into nodes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.worker import protocol
from XAICLIPModule.dicom import database
from XAICLIPModule.dicom.dicom_question import DicomQuestion
from XAICLIPModule.display import saliency_display
from XAICLIPModule.display.slice_views import Shown, SliceViews
from XAICLIPModule.live.developing_map import DevelopingMap
from XAICLIPModule.live.nodes import isInScene
from XAICLIPModule.live.turns import Turns, Work, isLarge
from XAICLIPModule.live.weak_observer import observe
from XAICLIPModule.panel import ways_out
from XAICLIPModule.scene import removal, results
from XAICLIPModule.scene.results import ExplanationNodes
from XAICLIPModule.worker.question import Box, Drawn, Question, Segment
from XAICLIPModule.worker.report_question import ReportQuestion
from XAICLIPModule.worker.shared_session import SHARED
from XAICLIPModule.worker.signals import Signal
from XAICLIPModule.worker.worker_session import Answer, Ended, Session

LARGE_FILES = ("saliency", "region")
"""Of a result, as large as the scan."""


class State(Enum):
    """What the logic is doing."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"


class ExplanationError(RuntimeError):
    """A computation that ended without a result, for a reason other than its inputs.

    Attributes
    ----------
    kind
        As in the worker's protocol, or ``stopped`` where the worker ended.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Download:
    """Wanted: a model of the catalogue on this machine."""

    name: str


@dataclass(frozen=True)
class Removal:
    """Wanted: what was downloaded of a model off this machine."""

    name: str


@dataclass
class _Run:
    """One request that is being computed."""

    question: Question | Download | Removal | ReportQuestion | DicomQuestion
    kind: str
    request: int = 0
    folder: Path | None = None
    map: DevelopingMap | None = None
    before: Shown | None = None
    """What the slice views showed before the map."""
    dropped: bool = False
    isLoading: bool = False
    """Whether the result is here, and being made into nodes."""
    turns: Turns | None = None

    @property
    def saliency(self) -> Any:
        """The map so far, where there is one in the scene."""
        node = self.map.node if self.map is not None else None
        return node if isInScene(node) else None

    def isInputThere(self) -> bool:
        """Whether the result could still be used; a report or a model is a file, and outlives the scan."""
        return not isinstance(self.question, Question) or isInScene(self.question.volumeNode)


class XAICLIPLogic(ScriptedLoadableModuleLogic):
    """Explains why a segmentation network drew a structure where it did.

    Parameters
    ----------
    session
        The worker; by default one that all logics of this Slicer share. A logic that nobody holds any more goes, and
        needs no `stop`: nothing that outlives it keeps it, but for what it computes.

    Attributes
    ----------
    stateChanged
        Emitted with the new `State`.
    progressed
        Emitted with stage, done, total and the seconds left of that stage (None while not known).
    warned
        Emitted with a sentence that the user should read before the result is there, which holds it too.
    appeared
        Emitted with the saliency volume when the first map of a run is shown.
    estimated
        Emitted with the saliency volume whenever it was brought up to date while computing.
    finished
        Emitted with `ExplanationNodes`.
    regionFound
        Emitted with a vtkMRMLSegmentationNode and the worker's warnings, after `startLocalizing`.
    reported
        Emitted with the path of the file, after `startReporting`.
    dicomWritten
        Emitted with the folder of the objects, after `startWritingDicom`, and whether they are in the DICOM database.
    downloaded
        Emitted with the name of a model that is on this machine now, after `startDownloading`.
    removed
        Emitted with the name of a model whose files were deleted, after `startRemoving`, and whether it is still here.
    failed
        Emitted with a sentence for the user and the kind of error.
    cancelled
        Emitted when a run ended, by the user's wish, without a result.

    Examples
    --------
    In Slicer's Python console::

        from XAICLIP import XAICLIPLogic
        nodes = XAICLIPLogic().explain(slicer.util.getNode("CTLiver"), prompt="liver")
        print(nodes.record["measurements"])
    """

    def __init__(self, session: Session | None = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.stateChanged, self.progressed = Signal(), Signal()
        self.appeared, self.estimated = Signal(), Signal()
        self.finished, self.regionFound = Signal(), Signal()
        self.reported, self.downloaded, self.removed = Signal(), Signal(), Signal()
        self.failed, self.cancelled, self.warned = Signal(), Signal(), Signal()
        self.dicomWritten = Signal()
        self._sharesSession = session is None
        self.session: Session = session if session is not None else SHARED.join(self)
        self.views = SliceViews()
        self.state = State.IDLE
        self._run: _Run | None = None
        self._parameters: Any = None  # the wrapped parameter node
        scene = slicer.mrmlScene
        self._endObserving = [
            observe(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeAboutToBeRemoved),
            observe(scene, scene.NodeRemovedEvent, self._onNodeRemoved),
            observe(scene, scene.StartCloseEvent, self._onSceneClosing),
            observe(scene, scene.EndImportEvent, self._onSceneImported),
        ]

    def getParameterNode(self) -> Any:
        """The module's parameter node, as a `XAICLIPParameterNode`."""
        from XAICLIPModule.parameters import XAICLIPParameterNode, repair  # see there why so late

        wrap: Any = XAICLIPParameterNode  # the decorator gives it a constructor that types do not know
        node = super().getParameterNode()
        # One wrapper for each node: each observes it for as long as it lives, and nothing ends that.
        if self._parameters is None or self._parameters.parameterNode is not node:
            repair(node)
            # Before the wrapper, whose cache reads all that a scene which is loaded puts into the node.
            self._endObserving.append(observe(node, vtk.vtkCommand.ModifiedEvent, self._onParametersModified, 1.0))
            self._parameters = wrap(node)
        return self._parameters

    def _onParametersModified(self, node: Any, _event: Any) -> None:
        from XAICLIPModule.parameters import repair

        repair(node)

    def forgetParameterNode(self) -> None:
        """Wrap it anew when it is next asked for: a scene that closes empties it."""
        self._parameters = None

    # --- asking ---

    def explain(self, volumeNode: Any, prompt: str, **choices: Any) -> ExplanationNodes:
        """Explain, and wait for the result; Slicer stays usable meanwhile.

        Parameters
        ----------
        volumeNode
            A CT or MR volume.
        prompt
            The structure in words: "liver", "left kidney".
        **choices
            The other attributes of `Question`, such as ``method="rise"``, ``parameters={"samples": 500}``,
            ``region="whole"``, ``target="spleen"`` or ``target=Segment(node, id)``, ``device="cpu"``.

        Raises
        ------
        InputError
            An input cannot be used: the message says which, and the way out.
        XAICLIPLib.errors.Cancelled
            `cancel` was called before there was a result.
        ExplanationError
            The computation ended for another reason.
        """
        outcome: list[ExplanationNodes | Exception] = []

        def onFailed(message: str, kind: str) -> None:
            wrong = kind in ("input", "missing package")
            outcome.append(InputError(message) if wrong else ExplanationError(message, kind))

        def onCancelled() -> None:
            outcome.append(Cancelled(_("Cancelled before there was a result.")))

        self.finished.connect(outcome.append)
        self.failed.connect(onFailed)
        self.cancelled.connect(onCancelled)
        try:
            self.startExplaining(Question(volumeNode, prompt, **choices))
            while not outcome:
                slicer.app.processEvents()
                time.sleep(0.01)
        finally:
            self.finished.disconnect(outcome.append)
            self.failed.disconnect(onFailed)
            self.cancelled.disconnect(onCancelled)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def startExplaining(self, question: Question) -> None:
        """Begin to explain; signals tell of what follows, the last of them is `finished`, `failed` or `cancelled`.

        Raises
        ------
        InputError
            An input cannot be used, or another computation is going on.
        """
        self._start(question, "explain")

    def startLocalizing(self, question: Question) -> None:
        """Begin to look for the prompt, without explaining; `regionFound` follows.

        Raises
        ------
        InputError
            As of `startExplaining`.
        """
        self._start(question, "localize")

    def startReporting(self, nodes: ExplanationNodes, output: Path) -> None:
        """Begin to write an explanation as a page for a reader, an .html or .pdf file; `reported` follows.

        Raises
        ------
        InputError
            The file has another ending, or a computation is going on.
        """
        self._start(ReportQuestion(nodes, output), "report")

    def startWritingDicom(self, nodes: ExplanationNodes, output: Path) -> None:
        """Begin to write an explanation as DICOM objects of its scan's study; `dicomWritten` follows.

        Raises
        ------
        InputError
            The scan was not loaded from DICOM, or a computation is going on.
        """
        self._start(DicomQuestion(nodes, output), "dicom")

    @property
    def isReporting(self) -> bool:
        """Whether it is a report that is being made."""
        return self._run is not None and self._run.kind == "report"

    @property
    def isWritingDicom(self) -> bool:
        """Whether it is DICOM objects that are being made."""
        return self._run is not None and self._run.kind == "dicom"

    @property
    def isDownloading(self) -> bool:
        """Whether it is a model that is being downloaded."""
        return self._run is not None and self._run.kind == "download"

    def startDownloading(self, name: str) -> None:
        """Begin to download a model of the catalogue; `downloaded` follows.

        Raises
        ------
        InputError
            Another computation is going on.
        """
        self._start(Download(name), "download")

    def startRemoving(self, name: str) -> None:
        """Begin to delete what was downloaded of a model; `removed` follows.

        Raises
        ------
        InputError
            Another computation is going on.
        """
        self._start(Removal(name), "remove")

    def lookForModels(self) -> None:
        """Start the worker where none runs, which says in its hello what is on this machine.

        Raises
        ------
        InputError
            The interpreter of the settings does not exist.
        """
        self.session.start()

    def cancel(self) -> None:
        """End what is going on with what it has; called again, at once and without a result."""
        if self._run is None or self._run.isLoading:
            return  # in a moment it is there
        if self.state is State.CANCELLING:
            self.session.stop()
            return
        was, request = self.state, self._run.request
        self._setState(State.CANCELLING)
        if was is State.STARTING:
            self._end()
            self.cancelled.emit()
        else:
            self.session.cancel(request)

    def stop(self) -> None:
        """End whatever goes on, and the worker where no other logic needs it; before the module goes away."""
        self._drop()
        if self._sharesSession:
            SHARED.leave(self)
        else:
            self.session.stop()
        if self._run is not None:
            self._end()  # its result is here, and nobody waits for it any more
        for end in self._endObserving:
            end()

    def _start(self, question: Question | Download | Removal | ReportQuestion | DicomQuestion, kind: str) -> None:
        if self._run is not None or self.session.isBusy:
            raise InputError(_busy())
        if not isinstance(question, (Download, Removal)):
            question.check()
        if isinstance(question, Question) and kind == "explain":
            checkDrawn(question.region)
            checkDrawn(question.target)
        self.session.endOutdated()
        self._run = _Run(question, kind)
        self._setState(State.STARTING)
        if self.session.hello is not None:
            self._ask(self._run)
            return
        self.session.greeted.connect(self._onGreeted)
        self.session.stopped.connect(self._onStoppedWhileStarting)
        try:
            self.session.start()
        except InputError:
            self._end()
            raise

    def _stopWaiting(self) -> None:
        self.session.greeted.disconnect(self._onGreeted)
        self.session.stopped.disconnect(self._onStoppedWhileStarting)

    def _onGreeted(self, _hello: protocol.Greeting) -> None:
        if self._run is not None and self.state is State.STARTING:
            self._ask(self._run)

    def _onStoppedWhileStarting(self, message: str) -> None:
        if self._run is not None and self.state is State.STARTING:
            self._end()
            self.failed.emit(message or _("The computation was ended."), "stopped")

    def _ask(self, run: _Run) -> None:
        """Write what the worker needs, and send the request."""
        assert self.session.hello is not None
        self.session.greeted.disconnect(self._onGreeted)
        self.session.stopped.connect(self._onStoppedWhileStarting)
        if isinstance(run.question, (Download, Removal)):
            self._send(run, {"name": run.question.name})
            return
        try:
            # Inside the worker's private folder, which is removed with it, also after a crash.
            run.folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.session.hello.folder))
        except OSError as error:
            self._onNotAsked(
                InputError(
                    _("The temporary folder cannot be written ({reason}): free some space on that disk.").format(
                        reason=error.strerror or error
                    )
                )
            )
            return
        work = getattr(run.question, f"{run.kind}Request")(run.folder)
        self._work(run, work, lambda asked: self._send(run, asked), self._onNotAsked)

    def _onNotAsked(self, error: InputError) -> None:
        self._end()
        self.failed.emit(str(error), "input")

    def _send(self, run: _Run, asked: dict[str, Any]) -> None:
        self._stopWaiting()
        if self.session.isBusy:
            self._onNotAsked(InputError(_busy()))  # another logic was faster
            return
        self._setState(State.RUNNING)
        run.request = self.session.request(run.kind, lambda reply: self._onReply(run, reply), **asked)

    def _work(self, run: _Run, work: Work, done: Callable[[Any], None], failed: Callable[[InputError], None]) -> None:
        """Do work for a run in turns; it ends with the run."""
        turns = Turns(work, done, failed)
        if run is self._run:
            run.turns = turns

    # --- answers ---

    def _onReply(self, run: _Run, reply: Answer) -> None:
        if isinstance(reply, protocol.Progress):
            if run is self._run and not run.dropped:
                if reply.warning:
                    self.warned.emit(reply.warning)
                self.progressed.emit(reply.stage, reply.done, reply.total, reply.seconds_left)
        elif isinstance(reply, protocol.Estimate):
            self._onEstimate(run, Path(reply.files["saliency"]))
        elif run is self._run:
            self._onLast(run, reply)

    def _onEstimate(self, run: _Run, path: Path) -> None:
        assert isinstance(run.question, Question)
        if run is not self._run or run.dropped or not run.isInputThere():
            path.unlink(missing_ok=True)
            return
        if run.map is None:
            volumeNode, name = run.question.volumeNode, run.question.resultName()
            run.map = DevelopingMap(volumeNode, name, lambda node: self._onMapUpdated(run, node))
        run.map.feed(path)

    def _onMapUpdated(self, run: _Run, saliencyNode: Any) -> None:
        if run.before is None:
            self._showFirst(run, saliencyNode)
        self.estimated.emit(saliencyNode)

    def _onLast(self, run: _Run, reply: Answer) -> None:
        """Turn the final answer into nodes, then tell."""
        if run.map is not None:
            run.map.stop()
        self._work(
            run,
            self._outcome(run, reply),
            lambda outcome: self._conclude(run, outcome),
            lambda error: self._conclude(run, (self.failed, (str(error), "input"))),
        )

    def _conclude(self, run: _Run, outcome: tuple[Signal, tuple[Any, ...]]) -> None:
        """End a run, and tell: whoever listens may start the next one at once."""
        if run.dropped:
            outcome = (self.cancelled, ())
        if outcome[0] is not self.finished and run.saliency is not None:
            if run.before is not None:
                self.views.giveBack(run.before, run.saliency)
            removal.remove(run.saliency)
        self._end(keepFigure=outcome[0] is self.finished)
        outcome[0].emit(*outcome[1])

    def _outcome(self, run: _Run, reply: Answer) -> Work:
        """Make what came of a run: the signal that tells it, and what goes with it."""
        if run.dropped:
            return self.cancelled, ()
        if isinstance(reply, (protocol.Error, Ended)):
            if reply.kind == "cancelled":
                return self.cancelled, ()
            return self.failed, (ways_out.sentence(reply.message, getattr(reply, "ways", None)), reply.kind)
        if isinstance(run.question, DicomQuestion):
            return self.dicomWritten, (run.question.output, database.add(run.question.output))
        if isinstance(reply, protocol.Reported):
            return self.reported, (Path(next(iter(reply.files.values()))),)
        if isinstance(run.question, Download):
            self.session.refresh()
            return self.downloaded, (run.question.name,)
        if isinstance(run.question, Removal):
            self.session.refresh()
            assert isinstance(reply, protocol.Removed)
            return self.removed, (run.question.name, reply.installed)
        assert isinstance(run.question, Question)
        if not run.isInputThere():
            return self.failed, (_("The volume was removed during the computation: there is no result."), "input")
        volumeNode, question = run.question.volumeNode, run.question
        if isinstance(reply, protocol.FoundRegion):
            node = yield from results.loadRegion(volumeNode, question.prompt.strip(), reply.files["region"])
            return self.regionFound, (node, list(reply.warnings))
        assert isinstance(reply, protocol.Explained)
        saliency = run.saliency
        run.isLoading = True
        isOneOfSeveral = bool(reply.further or reply.missing)
        name = question.resultName(str(reply.record["prompt"]) if isOneOfSeveral else None)
        if isOneOfSeveral and saliency is not None:
            saliency.SetName(slicer.mrmlScene.GenerateUniqueName(name))
        nodes = yield from results.load(volumeNode, reply.files, reply.record, name, saliency)
        further = []
        for one in reply.further or ():
            name = question.resultName(str(one["record"]["prompt"]))
            further.append((yield from results.load(volumeNode, one["files"], one["record"], name)))
        nodes = replace(nodes, further=tuple(further), missing=dict(reply.missing or {}))
        if run.before is None:
            self._showFirst(run, nodes.saliency)
        elif not self.views.isShown(nodes.saliency):
            self._show(volumeNode, nodes.saliency)
        saliency_display.showLegend(nodes.saliency, True)
        assert run.folder is not None
        # Large files take a while to delete: one in each turn. The rest is for `_end`.
        written = [
            one[name] for one in (reply.files, *(f["files"] for f in reply.further or ())) for name in LARGE_FILES
        ]
        for path in (run.folder / "volume.nrrd", *map(Path, written)):
            if path.is_file() and isLarge(path.stat().st_size) and path.is_relative_to(run.folder):
                yield
                path.unlink(missing_ok=True)
        return self.finished, (nodes,)

    def _showFirst(self, run: _Run, saliencyNode: Any) -> None:
        assert isinstance(run.question, Question)
        run.before = self.views.shown()
        self._show(run.question.volumeNode, saliencyNode)
        self.appeared.emit(saliencyNode)

    def _show(self, volumeNode: Any, saliencyNode: Any) -> None:
        self.views.show(volumeNode, saliencyNode, saliency_display.OPACITY)

    def _end(self, keepFigure: bool = False) -> None:
        """Forget the run and remove its files; the figure is small, and wanted when the results are saved."""
        run, self._run = self._run, None
        if run is not None and run.turns is not None:
            run.turns.stop()
        self._stopWaiting()
        if run is not None and run.folder is not None:
            kept = set((run.folder / "results").rglob("figure.png")) if keepFigure else set()
            for file in list(run.folder.rglob("*")):
                if file.is_file() and file not in kept:
                    file.unlink(missing_ok=True)
            if not kept:
                shutil.rmtree(run.folder, ignore_errors=True)
        self._setState(State.IDLE)

    # --- the scene's life ---

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAboutToBeRemoved(self, _scene: Any, _event: Any, node: Any) -> None:
        """A result that is deleted, here or in another module, takes with it what only it needs."""
        if slicer.mrmlScene.IsClosing() or not node.IsA("vtkMRMLScalarVolumeNode"):
            return
        if node.GetAttribute(saliency_display.SALIENCY_ATTRIBUTE):
            belongings = removal.belongingsOf(node)  # its references are gone afterwards
            qt.QTimer.singleShot(0, belongings.remove)

    def _onNodeRemoved(self, *_event: Any) -> None:
        run = self._run
        if run is not None and not run.dropped and not run.isInputThere():
            self._drop()

    def _onSceneClosing(self, *_event: Any) -> None:
        if self._run is None or not isinstance(self._run.question, (Download, Removal)):  # which is not for one scene
            self._drop()
        self.views.forget()

    def _onSceneImported(self, *_event: Any) -> None:
        """Read the parameters again: what was read of a half loaded scene is cached, with references not resolved."""
        self._rereadParameters()
        # Once more: node selectors learn only after this event what came in.
        qt.QTimer.singleShot(0, self._rereadParameters)

    def _rereadParameters(self) -> None:
        if self._parameters is not None:
            self._parameters.Modified()  # the wrapper's cache follows nothing else

    def _drop(self) -> None:
        """Cancel what goes on, whose result nobody can use any more."""
        if self._run is None:
            return
        self._run.dropped = True
        if self.state is not State.CANCELLING:
            self.cancel()

    def _setState(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self.stateChanged.emit(state)


def _busy() -> str:
    return _("A computation is going on: wait for it, or cancel it first.")


def checkDrawn(drawn: str | Drawn | None) -> None:
    """Refuse a region or target that was deleted or never chosen.

    Raises
    ------
    InputError
        With the way out.
    """
    if isinstance(drawn, Segment) and not isInScene(drawn.node):
        raise InputError(_("No segment is chosen: choose one, or take the default."))
    if isinstance(drawn, Box) and not isInScene(drawn.node):
        raise InputError(_("No box is chosen: draw one, or take the default."))
