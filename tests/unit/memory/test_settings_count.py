"""What a pool's settings say about memory reaches the prediction."""

import pytest

from llama_orch.core.settings import PoolSettings, ProvisioningSettings
from llama_orch.pools.preparing import order_of
from llama_orch.pools.sizing import shape_of, size_of

from ...engines.shaped_gguf import ModelPlan, write_shaped

MIB = 2**20


def predicted(shape, **options):
    settings = PoolSettings(id="a", ctx=4_096, slots=2, provisioning=ProvisioningSettings(options=options))
    return size_of(order_of(settings, "m", ["cpu"]), shape).predicted_bytes["cpu"]


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    found = shape_of(write_shaped(tmp_path_factory.mktemp("model") / "m.gguf", ModelPlan(vocab=500)))
    assert found is not None
    return found


def test_cached_prompts_take_what_they_may_and_nothing_unless_somebody_says(shape):
    assert predicted(shape, cache_ram_mib=512) == predicted(shape) + 512 * MIB
    assert predicted(shape, cache_ram_mib=0) == predicted(shape)


@pytest.mark.parametrize(
    "option, value", [("ubatch", 256), ("batch", 128), ("kv_type_k", "q8_0"), ("kv_type_v", "q4_0")]
)
def test_a_smaller_batch_or_a_denser_cache_takes_less(shape, option, value):
    assert predicted(shape, **{option: value}) < predicted(shape)


def test_attention_without_flash_takes_more(shape):
    assert predicted(shape, flash_attention="off") > predicted(shape, flash_attention="auto")
