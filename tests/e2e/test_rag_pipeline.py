"""The pipeline over a real daemon process: a tiny random model, whose KV is as real to the store as any."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from tiny_rag import DOCUMENTS, LOAD_ALL, ByteTokenizer, tiny_model

from kvloom import codec, limits
from kvloom.blend.gate import BlendGate, QualityTarget, RatioQuality
from kvloom.clients.rag import BatchQuestion, Document, RagPipeline
from kvloom.clients.rag.loading import PlanSettings
from kvloom.clients.rag.pipeline import Strategy
from kvloom.clients.rag.trials import trials_of
from kvloom.clients.resident import PoolPlace
from kvloom.codec import EXACT, STANDARD, LossyCodec
from kvloom.daemon.demo.daemon_process import DaemonProcess
from kvloom.errors import InvalidRequest
from kvloom.kvstore.outcome import Hit


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    process = DaemonProcess(tmp_path_factory.mktemp("rag") / "data")
    yield process
    process.stop()


@pytest.fixture(scope="module")
def client(daemon):
    return daemon.start()


@pytest.fixture
def pipeline(model, client):
    pipeline = RagPipeline(model, ByteTokenizer(), client, chunk_tokens=100, planning=LOAD_ALL)
    yield pipeline
    pipeline.close()


def test_ingest_once_and_from_another_process_never_again(model, client, pipeline):
    told = []
    report = pipeline.ingest(DOCUMENTS, on_document=lambda document: told.append(document.title))
    assert told == [item.title for item in DOCUMENTS]
    assert report.documents == 6
    again = pipeline.ingest(DOCUMENTS)
    assert (again.already_stored, again.stored_bytes) == (6, 0)
    newcomer = RagPipeline(model, ByteTokenizer(), client, chunk_tokens=100)
    assert newcomer.ingest(DOCUMENTS).already_stored == 6
    assert newcomer.profile is not None
    assert newcomer.profile.digest == pipeline.profile.digest
    newcomer.close()


def test_every_put_says_which_chunk_is_before_it(model, client, monkeypatch):
    said = {}
    put = client.put

    def noting(key, data, **options):
        said[key] = options["parent"]
        return put(key, data, **options)

    monkeypatch.setattr(client, "put", noting)
    with closing(RagPipeline(model, ByteTokenizer(), client, chunk_tokens=100)) as pipeline:
        document = Document("another text, of several chunks. " * 12, "new")
        pipeline.ingest([document])
        keys = pipeline.document_keys(document)
    assert len(keys) > 2
    assert [said[key] for key in keys[1:]] == keys[:-1]


def test_blended_answer_is_near_the_full_one(pipeline):
    pipeline.ingest(DOCUMENTS)
    chosen = [DOCUMENTS[4], DOCUMENTS[1], DOCUMENTS[3]]
    full = pipeline.generate("what follows?", chosen, strategy=Strategy.RECOMPUTE, tokens_max=5)
    blended = pipeline.generate("what follows?", chosen, tokens_max=5)
    assert not blended.load.missed
    assert blended.load.bytes_read > 0
    assert round(blended.blend.recompute_ratio * blended.blend.stored_tokens) == limits.RECOMPUTED_TOKENS_MIN
    correlation = np.corrcoef(full.logits, blended.logits)[0, 1]
    assert correlation > 0.98
    assert len(blended.token_ids) == 5
    assert blended.prompt_tokens == full.prompt_tokens


def test_short_documents_are_computed_again_also_where_they_stand_as_stored(pipeline):
    short = [Document("The kettle is left."), Document("Tea is above it.")]
    pipeline.ingest(short)
    full = pipeline.generate("where?", short, strategy=Strategy.RECOMPUTE, tokens_max=5)
    blended = pipeline.generate("where?", short, tokens_max=5)
    assert (len(blended.load.loaded), blended.blend.recompute_ratio) == (2, 1.0)
    assert np.abs(blended.logits - full.logits).max() < 1e-4
    assert blended.token_ids == full.token_ids


def gate_of(pipeline, kl):
    measured = (RatioQuality(0.35, kl, 0.0, 1.0),)
    return BlendGate(pipeline.identity.fingerprint, QualityTarget(0.05, 0.5), 4, measured).to_bytes()


def test_the_ratio_is_what_calibration_found_and_every_process_finds_it(model, client, pipeline, tmp_path):
    pipeline.ingest(DOCUMENTS)
    own = DaemonProcess(tmp_path / "data")
    plain = {"chunk_tokens": 100, "planning": PlanSettings(enabled=False)}
    with own.start() as fresh, closing(RagPipeline(model, ByteTokenizer(), fresh, **plain)) as first:
        first.use_profile(replace(pipeline.profile, blend_gate=gate_of(pipeline, 0.01)))
        first.ingest(DOCUMENTS)
        with closing(RagPipeline(model, ByteTokenizer(), fresh, **plain)) as newcomer:
            answer = newcomer.generate("what follows?", DOCUMENTS[:4], tokens_max=2)
            assert 0.33 < answer.blend.recompute_ratio < 0.37
            assert (answer.strategy, answer.refusal) == (Strategy.BLEND, "")
    own.stop()


def test_a_model_that_misses_the_target_computes_everything_and_says_why(pipeline):
    pipeline.ingest(DOCUMENTS)
    chosen = [DOCUMENTS[4], DOCUMENTS[1]]
    full = pipeline.generate("what follows?", chosen, strategy=Strategy.RECOMPUTE, tokens_max=4)
    pipeline.profile = replace(pipeline.profile, blend_gate=gate_of(pipeline, 0.3))
    answer = pipeline.generate("what follows?", chosen, tokens_max=4)
    assert (answer.strategy, answer.token_ids, answer.load) == (Strategy.RECOMPUTE, full.token_ids, None)
    assert "KL of 0.300" in answer.refusal


def test_answers_are_checked_behind_their_backs_and_the_daemon_is_told(model, client):
    before = client.stats().quality
    with closing(RagPipeline(model, ByteTokenizer(), client, chunk_tokens=100, canary_every=2)) as pipeline:
        pipeline.ingest(DOCUMENTS)
        for number in range(4):
            # What is computed in full has nothing to be checked, and does not count.
            pipeline.generate(f"what follows {number}?", DOCUMENTS[:3], strategy=Strategy.RECOMPUTE, tokens_max=1)
            pipeline.generate(f"what follows {number}?", DOCUMENTS[:3], tokens_max=3)
            pipeline.canary.wait()
        found = pipeline.canary.metrics()
        assert (found.checked, found.skipped, found.failed) == (2, 0, 0)
        for _ in range(2):
            pipeline.generate("what follows?", DOCUMENTS[:3], strategy=Strategy.RECOMPUTE, tokens_max=1)
        pipeline.canary.wait()
        assert pipeline.canary.metrics().checked == 2
    after = client.stats().quality
    assert after.checked - before.checked == 2
    assert after.kl_sum > before.kl_sum


def test_a_batch_decodes_each_chunk_once_and_answers_as_one_by_one(model, client):
    planning = PlanSettings(enabled=False)
    with closing(RagPipeline(model, ByteTokenizer(), client, chunk_tokens=100, planning=planning)) as pipeline:
        pipeline.ingest(DOCUMENTS)
        sets = [(0, 1), (4, 5), (1, 2), (5, 4), (0, 1)]
        asked = [
            BatchQuestion(f"what follows {number}?", tuple(DOCUMENTS[n] for n in chosen))
            for number, chosen in enumerate(sets)
        ]
        together = pipeline.generate_batch(asked, tokens_max=3)
        single = [pipeline.generate(item.question, item.documents, tokens_max=3) for item in asked]
        for one, other in zip(together, single, strict=True):
            assert one.token_ids == other.token_ids
            np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
        distinct = {key for number in (0, 1, 2, 4, 5) for key in pipeline.document_keys(DOCUMENTS[number])}
        uses = sum(len(answer.load.loaded) for answer in together)
        assert sum(answer.load.resident for answer in together) == uses - len(distinct)
        assert sum(answer.load.bytes_read for answer in together) < sum(answer.load.bytes_read for answer in single)
        assert not any(answer.load.missed for answer in together)
        with pytest.raises(InvalidRequest, match="question 0 needs"):
            pipeline.generate_batch(asked, bytes_max=1000)


def test_calibrating_on_trials_finds_the_gate(pipeline):
    trials = trials_of([" ".join(item.text for item in DOCUMENTS)] * 2, 2, words=30)
    profile = pipeline.calibrate([item.text for item in DOCUMENTS], trials=trials)
    gate = BlendGate.from_bytes(profile.blend_gate)
    assert (gate.prompts, gate.fingerprint) == (2, pipeline.identity.fingerprint)
    assert pipeline.blending.gate == gate
    assert pipeline.profile is profile


def test_exact_prefix_gives_the_same_tokens(pipeline):
    chosen = DOCUMENTS[:3]
    first = pipeline.generate("same?", chosen, strategy=Strategy.RECOMPUTE, tokens_max=12, remember=True)
    second = pipeline.generate("same?", chosen, strategy=Strategy.PREFIX, tokens_max=12)
    assert second.token_ids == first.token_ids
    assert not second.load.missed
    assert np.abs(second.logits - first.logits).max() < 1e-4
    other = pipeline.generate("other?", chosen, strategy=Strategy.PREFIX, tokens_max=12)
    assert other.load.missed
    assert other.token_ids == pipeline.generate("other?", chosen, strategy=Strategy.RECOMPUTE, tokens_max=12).token_ids


def test_a_missing_chunk_is_computed(pipeline, client):
    pipeline.ingest(DOCUMENTS)
    chosen = [DOCUMENTS[0], DOCUMENTS[5]]
    gone = pipeline.document_keys(DOCUMENTS[5])
    assert len(gone) >= 2
    assert client.delete(gone[0])
    answer = pipeline.generate("what now?", chosen, tokens_max=3)
    assert [place.ref.key for place in answer.load.missed] == [gone[0]]
    full = pipeline.generate("what now?", chosen, strategy=Strategy.RECOMPUTE, tokens_max=3)
    assert np.corrcoef(full.logits, answer.logits)[0, 1] > 0.98
    pipeline.ingest(DOCUMENTS)
    assert all(client.exists(gone))


def test_stored_levels(pipeline, client):
    pipeline.ingest(DOCUMENTS)
    key = pipeline.document_keys(DOCUMENTS[0])[0]
    outcome = client.get(key, level=STANDARD)
    assert isinstance(outcome, Hit)
    assert outcome.value.header.first_position == len(pipeline.template.prefix)
    assert EXACT not in outcome.value.header.levels


def samples_seen(monkeypatch):
    """What the codec is calibrated on from now on, as pairs of tokens and of how many a gradient is known for."""
    seen, calibrate = [], codec.calibrate

    def watching(samples, layout, **options):
        def watched():
            for sample in samples:
                seen.append((sample.keys[0].shape[1], *(item.keys[0].shape[1] for item in sample.gradients)))
                yield sample

        return calibrate(watched(), layout, **options)

    monkeypatch.setattr(codec, "calibrate", watching)
    return seen


def test_calibration_knows_what_the_model_minds(pipeline, monkeypatch):
    seen = samples_seen(monkeypatch)
    texts = iter(["x" * 3000, *["Short. " * 20] * 40, "never read"])
    profile = pipeline.calibrate(texts)
    assert seen == [(896, 640)] * 8  # two of the long text, six of short ones joined
    assert "never read" in texts
    assert pipeline.profile is profile
    seen.clear()
    pipeline.calibrate(["A text of thirty-five tokens or so."])
    assert seen == [(36, 25)]
    with pytest.raises(InvalidRequest, match="no context"):
        pipeline.calibrate([])


def test_a_model_that_torch_cannot_differentiate_is_calibrated_all_the_same(pipeline, model, monkeypatch):
    seen = samples_seen(monkeypatch)
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, output: output.detach())
    try:
        assert pipeline.calibrate(["Short. " * 20]).layout == pipeline.layout
    finally:
        hook.remove()
    assert seen == [(141,)]


def test_refusals(pipeline):
    with pytest.raises(InvalidRequest, match="cannot be remembered"):
        pipeline.generate("q", DOCUMENTS[:1], remember=True)
    with pytest.raises(InvalidRequest, match="tokens_max is 0, must be 1 to"):
        pipeline.generate("q", DOCUMENTS[:1], tokens_max=0)


def test_a_dead_daemon_costs_nothing_but_the_hit(model, tmp_path):
    process = DaemonProcess(tmp_path / "data")
    pipeline = RagPipeline(model, ByteTokenizer(), process.start(), chunk_tokens=100)
    pipeline.ingest(DOCUMENTS[:2])
    process.kill()
    full = pipeline.generate("still there?", DOCUMENTS[:2], strategy=Strategy.RECOMPUTE, tokens_max=6)
    for strategy in (Strategy.BLEND, Strategy.PREFIX):
        answer = pipeline.generate("still there?", DOCUMENTS[:2], strategy=strategy, tokens_max=6)
        assert not answer.load.loaded
        assert answer.token_ids == full.token_ids
    pipeline.close()


def test_the_daemons_codec_is_followed_and_a_change_of_it_too(model, start_daemon):
    daemon = start_daemon("--codec", "cachegen")
    pipeline = RagPipeline(model, ByteTokenizer(), daemon.client(), chunk_tokens=100, planning=LOAD_ALL)
    pipeline.ingest(DOCUMENTS[:2])
    assert pipeline.profile.codec is LossyCodec.CACHEGEN
    assert all(daemon.client().info(key).codec is LossyCodec.CACHEGEN for key in pipeline.document_keys(DOCUMENTS[0]))
    full = pipeline.generate("what follows?", DOCUMENTS[:2], strategy=Strategy.RECOMPUTE, tokens_max=1)
    blended = pipeline.generate("what follows?", DOCUMENTS[:2], tokens_max=1)
    assert not blended.load.missed
    assert np.corrcoef(full.logits, blended.logits)[0, 1] > 0.98

    daemon.stop()
    daemon.flags = ("--codec", "kvloom")
    newcomer = RagPipeline(model, ByteTokenizer(), daemon.start().client(), chunk_tokens=100, planning=LOAD_ALL)
    pipeline.use_client(daemon.client())
    for each in (newcomer, pipeline):
        each.ingest(DOCUMENTS[:4])
        assert each.profile.codec is LossyCodec.KVLOOM
    assert newcomer.profile.digest == pipeline.profile.digest
    mixed = newcomer.generate("what follows?", [DOCUMENTS[3], DOCUMENTS[0]], tokens_max=1)
    assert not mixed.load.missed, "what was stored before is read as it was coded"
    codecs = [daemon.client().info(newcomer.document_keys(DOCUMENTS[n])[0]).codec for n in (0, 3)]
    assert codecs == [LossyCodec.CACHEGEN, LossyCodec.KVLOOM]
    for each in (newcomer, pipeline):
        each.close()


@pytest.fixture(params=["host", "torch:cpu"])
def pooled(request, model, client):
    pipeline = RagPipeline(
        model, ByteTokenizer(), client, chunk_tokens=100, pool=PoolPlace(16 * 1024**2, request.param)
    )
    yield pipeline
    pipeline.close()


def test_documents_that_were_decoded_once_are_copied_the_next_time(pipeline, pooled):
    pooled.ingest(DOCUMENTS)
    chosen = [DOCUMENTS[4], DOCUMENTS[1], DOCUMENTS[3]]
    straight = pipeline.context(chosen, "what follows?")
    first, second = (pooled.context(chosen, "what follows?") for _ in range(2))
    assert (first.result.resident, second.result.resident) == (0, len(second.result.loaded))
    assert (first.result.bytes_read, second.result.bytes_read) == (straight.result.bytes_read, 0)
    moved = pooled.context(chosen[::-1], "what follows?").result
    assert moved.resident == len(moved.loaded), "the same chunks, elsewhere in the prompt"
    for context in (first, second):
        assert context.result.loaded == straight.result.loaded
        for layer in range(len(pipeline.layout.layers)):
            expected, found = straight.cache.layer_arrays(layer), context.cache.layer_arrays(layer)
            for place in straight.result.loaded:
                span = slice(place.start, place.stop)
                assert np.array_equal(found.values[:, span], expected.values[:, span])
                assert np.abs(found.keys[:, span] - expected.keys[:, span]).max() < 1e-4
    assert pooled.resident.stats().leased == 0
    full = pipeline.generate("what follows?", chosen, tokens_max=3)
    assert np.abs(pooled.generate("what follows?", chosen, tokens_max=3).logits - full.logits).max() < 1e-2


def test_what_a_pool_remembers_is_there_at_once_and_for_others_soon(model, client, pooled):
    chosen = DOCUMENTS[1:4]
    question = f"remembered {pooled.resident.pool.device}?"
    first = pooled.generate(question, chosen, strategy=Strategy.RECOMPUTE, tokens_max=8, remember=True)
    second = pooled.generate(question, chosen, strategy=Strategy.PREFIX, tokens_max=8)
    assert second.token_ids == first.token_ids
    assert (second.load.resident, second.load.bytes_read) == (len(second.load.loaded), 0)
    assert not second.load.missed
    pooled.resident.drain()
    other = RagPipeline(model, ByteTokenizer(), client, chunk_tokens=100, planning=LOAD_ALL)
    third = other.generate(question, chosen, strategy=Strategy.PREFIX, tokens_max=8)
    assert not third.load.missed
    assert np.array_equal(third.logits, second.logits), "exact is exact, whether it was resident or not"
    other.close()


def test_a_pool_too_small_for_a_prompt_takes_what_it_can(model, client, pipeline):
    small = RagPipeline(model, ByteTokenizer(), client, chunk_tokens=100, pool=PoolPlace(180_000))
    small.ingest(DOCUMENTS)
    chosen = [DOCUMENTS[4], DOCUMENTS[1], DOCUMENTS[3]]
    for _ in range(2):
        context = small.context(chosen, "what follows?")
        assert context.result.loaded == pipeline.context(chosen, "what follows?").result.loaded
        assert not context.result.missed
    assert small.resident.stats().refused
    answer = small.generate("what follows?", chosen, strategy=Strategy.RECOMPUTE, tokens_max=2, remember=True)
    again = small.generate("what follows?", chosen, strategy=Strategy.PREFIX, tokens_max=2)
    assert again.token_ids == answer.token_ids
    small.close()
    small.close()
