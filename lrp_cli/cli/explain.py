"""``lrp explain``: heatmaps for pictures."""

from pathlib import Path

import typer

from lrp_cli.cli import options
from lrp_cli.cli.parsing import check_random_seed, load_config, parse_kinds, parse_preprocessing, parse_threads


def explain(
    paths: options.Paths = None,
    model: options.Model = "efficientnet_lite0",
    weights: options.Weights = None,
    config: options.Config = "auto",
    target: options.Targets = None,
    out: options.Out = Path("lrp-out"),
    save: options.Save = "overlay,npy",
    full: options.Full = False,
    fit: options.FitTo = options.Fit.CROP,
    seed: options.SeedKind = options.Seed.LOGIT,
    on_unknown: options.Unknown = options.OnUnknown.ERROR,
    recursive: options.Recursive = False,
    include: options.Include = None,
    exclude: options.Exclude = None,
    lists: options.Lists = None,
    stdin0: options.Stdin0 = False,
    image_stdin: options.ImageStdin = False,
    name: options.Name = "stdin",
    labels: options.Labels = None,
    random_seed: options.RandomSeed = 0,
    resize: options.Resize = None,
    crop: options.Crop = None,
    mean: options.Mean = None,
    std: options.Std = None,
    interpolation: options.HowToResize = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.DType = options.Precision.FLOAT32,
    threads: options.Threads = None,
    compiled: options.Compile = False,
    force: options.Force = False,
    fail_fast: options.FailFast = False,
    max_failures: options.MaxFailures = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Explain why pictures are classified as they are.

    For each picture and target, writes an overlay (the relevance in colour on the grey photograph) and the relevance
    itself, float32 of shape (3, height, width) in the coordinates of the model's input, into the directory --out, and
    a line into its manifest.jsonl. What the manifest says is done, unchanged and intact is skipped.

    Exit codes: 0 all explained, 1 some pictures failed, 2 wrong usage, 3 no such model or weights, 4 invalid config,
    5 the model cannot be explained, 130 and 143 interrupted.
    """
    kinds = parse_kinds(save)
    changes = parse_preprocessing(fit, resize, crop, mean, std, interpolation)
    thread_count = parse_threads(threads)
    check_random_seed(random_seed)
    ruleset = load_config(config)

    from lrp_cli.cli.inputs import Named, find
    from lrp_cli.cli.progress import Progress
    from lrp_cli.cli.report import Report
    from lrp_cli.cli.text import counted

    targets = tuple(target or ["predicted"])
    report = Report(1 if fail_fast else max_failures)
    with Progress(quiet=quiet, verbose=verbose, as_json=as_json) as progress:
        named = Named(
            paths=tuple(paths or ()),
            lists=tuple(lists or ()),
            stdin0=stdin0,
            image_name=name if image_stdin else None,
            recursive=recursive,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            targets=targets,
        )
        pictures = find(named, out, progress, report)

        from lrp_cli.runs.spinning import spin_briefly

        spin_briefly()
        # From here on it takes a second or two: torch.
        from lrp_cli.cli.running import run, show_plan
        from lrp_cli.explainer import Explainer
        from lrp_cli.models import load_model
        from lrp_cli.runs.batches import Batches
        from lrp_cli.runs.devices import choose_device, use_precision, use_threads
        from lrp_cli.runs.memory import keep_freed_memory, limit_to_free_memory
        from lrp_cli.runs.pipeline import most_threads
        from lrp_cli.runs.session import Session
        from lrp_cli.runs.settings import Settings

        keep_freed_memory()
        use_threads(thread_count)
        chosen = choose_device(device)
        loaded = load_model(
            model, weights, labels=labels, seed=random_seed, preprocessing=changes, progress=progress.is_shown
        )
        settings = Settings(
            targets=targets,
            kinds=kinds,
            directory=out,
            batch_size=batch_size,
            device=chosen,
            seed=seed.value,
            on_unknown=on_unknown.value,
            products=use_precision(loaded.network, dtype.value),
            full=full,
            force=force,
        )
        explainer = Explainer(
            loaded.network.to(settings.device),
            ruleset,
            bounds=loaded.preprocessing.bounds,
            on_unknown=settings.on_unknown,
            products=settings.products,
            compile=compiled,
        )
        session = Session(loaded, explainer, settings)
        session.check()
        if chosen.type == "cpu":
            limit_to_free_memory(most_threads())
        progress.detail(f"model {loaded.name}, weights {loaded.weights}, on {settings.device}")
        progress.detail(f"config {explainer.config.name}, seed {settings.seed}")
        progress.detail(f"preprocessing {loaded.preprocessing.to_json()}")
        at_once = Batches(settings.batch_size, settings.device).most
        progress.detail(f"{counted(len(pictures), 'picture')}, up to {at_once} at once, to {out}")
        (show_plan if dry_run else run)(session, pictures, out, progress, report)
        for complaint in explainer.assignment.unmatched(loaded.network):
            progress.note(f"config {explainer.config.name}: {complaint}")
        if explainer.compiler and not dry_run:
            progress.note(f"--compile: {explainer.compiler.report}")
    raise typer.Exit(report.exit_code)
