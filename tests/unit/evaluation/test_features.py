import numpy as np
import pytest

from neuromf.evaluation.extractors.registry import VOLUME, codec_extractor
from neuromf.evaluation.features import cached_features, cached_regions, gather, one_row_each, rows_of
from neuromf.tensors import TensorError


def test_features_come_from_the_cache_until_volume_or_codec_change(brain, codec, tmp_path):
    extractor = codec_extractor(codec)
    volume = brain(0)
    first = cached_features(volume, "aa", extractor, tmp_path, 6.0)[VOLUME]
    assert first.shape == (1, 64)
    assert (cached_features(volume, "aa", extractor, tmp_path, 6.0)[VOLUME] == first).all() and codec.encoded == 1
    cached_features(brain(1), "bb", extractor, tmp_path, 6.0)
    assert codec.encoded == 2
    codec.sha256 = "1" * 64
    cached_features(volume, "aa", codec_extractor(codec), tmp_path, 6.0)
    assert codec.encoded == 3


def test_a_damaged_cache_file_is_computed_again(brain, codec, tmp_path):
    extractor = codec_extractor(codec)
    first = cached_features(brain(0), "aa", extractor, tmp_path, 6.0)[VOLUME]
    (path,) = tmp_path.rglob("aa.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    assert (cached_features(brain(0), "aa", extractor, tmp_path, 6.0)[VOLUME] == first).all()


def test_a_flipped_bit_in_the_cache_is_computed_again_and_never_gathered(brain, codec, tmp_path):
    extractor = codec_extractor(codec)
    first = cached_features(brain(0), "aa", extractor, tmp_path, 6.0)[VOLUME]
    (path,) = tmp_path.rglob("aa.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TensorError, match=r"aa\.safetensors is damaged"):
        gather(tmp_path, extractor, ["aa"], VOLUME)
    assert (cached_features(brain(0), "aa", extractor, tmp_path, 6.0)[VOLUME] == first).all()
    assert (gather(tmp_path, extractor, ["aa"], VOLUME).values == first).all()


def test_gathered_rows_keep_the_order_of_the_scans(brain, codec, tmp_path):
    extractor = codec_extractor(codec)
    found = {name: cached_features(brain(i), name, extractor, tmp_path, 6.0) for i, name in enumerate("abc")}
    rows = gather(tmp_path, extractor, ["c", "a"], VOLUME)
    assert (rows.values == np.concatenate([found["c"][VOLUME], found["a"][VOLUME]])).all() and len(rows) == 2
    assert cached_regions(tmp_path, extractor, "b") == [VOLUME]


def test_rows_of_scans_stay_together():
    rows = rows_of([np.full((2, 3), 0.0), np.full((1, 3), 1.0), np.full((3, 3), 2.0)])
    assert rows.starts.tolist() == [0, 2, 3]
    chosen = rows.of_scans([2, 0])
    assert chosen.values[:, 0].tolist() == [2, 2, 2, 0, 0] and chosen.counts.tolist() == [3, 2]
    assert len(one_row_each(np.zeros((4, 2)))) == 4
    with pytest.raises(ValueError, match="one F"):
        one_row_each(np.zeros(3))
