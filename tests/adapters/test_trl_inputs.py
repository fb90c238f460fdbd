"""Whatever goes into a run, what is captured is the trainer's own: tools, environments, conversations, images."""

import asyncio
import base64
import copy
import functools
import io
import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from PIL import Image
from small_models import CHATS, add, chat_llama, chat_tokenizer, image_processor, small_llava, tool_llama
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, chat_template_utils
from trl_numbers import KeptTrainer, compare, identical
from trl_runs import QUICK
from vllm_stub import sampler

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.adapters.tokenizer import placeholders

QUESTIONS = Dataset.from_dict({"prompt": [chat[:1] for chat in CHATS]})


def said(completions, **_):
    """A reward of whole conversations: characters said by everyone, tools included."""
    return [0.01 * sum(len(message["content"]) for message in completion) for completion in completions]


def called(completions, **_):
    return [float(any(message.get("tool_calls") for message in completion)) for completion in completions]


@pytest.fixture(scope="session")
def tool_folder(tmp_path_factory):
    """In a folder, as the reference model of beta > 0 is loaded by path."""
    folder = tmp_path_factory.mktemp("tools")
    tool_llama().save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def train(tmp_path):
    """Trains two updates on one rollout and one more on the next; the trainer, and the bundle where it was captured."""

    def trained(model, *, cls=KeptTrainer, capture=True, rewards=(said,), dataset=QUESTIONS, tools=None, **settings):
        callback = UnipoCallback(tmp_path / "run", strict=True)
        of_trainer = {key: settings.pop(key) for key in ("environment_factory", "rollout_func") if key in settings}
        defaults = (
            QUICK
            | {"output_dir": str(tmp_path / "out")}
            | {"num_iterations": 2, "max_completion_length": 96, "max_steps": 3}
        )
        tokenizer = settings.pop("tokenizer", chat_tokenizer())
        trainer = cls(
            model if isinstance(model, torch.nn.Module) else AutoModelForCausalLM.from_pretrained(model),
            reward_funcs=list(rewards),
            args=GRPOConfig(**defaults | settings),
            train_dataset=dataset,
            processing_class=copy.deepcopy(tokenizer),
            callbacks=[callback] if capture else [],
            tools=tools,
            **of_trainer,
        )
        trainer.train()
        return (trainer, open_bundle(callback.path)) if capture else trainer

    return trained


def of_tools(bundle, rollout=0):
    """Text of each stretch of tokens that a tool wrote, by row."""
    table = bundle.tokens(rollout=rollout).to_pandas()
    stretches = []
    for row, tokens in table.groupby("row"):
        number = (tokens["mask_reason"] != tokens["mask_reason"].shift()).cumsum()
        runs = [run for _, run in tokens.groupby(number) if (run["mask_reason"] == 1).all()]
        stretches += [(row, "".join(run["strings"])) for run in runs]
    return stretches


@pytest.mark.parametrize("settings", [{"beta": 0.05}, {"loss_type": "grpo", "steps_per_generation": 2}], ids=str)
def test_tokens_of_a_tool_are_stored_and_shown_and_have_no_part_in_the_loss(train, tool_folder, settings):
    trainer, bundle = train(tool_folder, tools=[add], rewards=[said, called], **settings)
    compare(trainer, bundle)
    written = of_tools(bundle)
    calls = [m for completion in trainer.scored[0]["completions"] for m in completion if m["role"] == "tool"]
    assert [text.split("\n")[3] for _, text in written] == [call["content"] for call in calls]
    assert any("naïvely ☃" in text for _, text in written)
    everything = [text for number in range(len(trainer.scored)) for _, text in of_tools(bundle, number)]
    assert any("not found" in text for text in everything), "no call of a tool that is not there"
    tokens = bundle.tokens(update=0).to_pandas()
    outside = tokens[tokens["mask"] == 0]
    # The trainer scores every token that the model sees; what it computed of a tool's is there to be looked at.
    channels = ["log_probs", "entropies", "old_log_probs", *(["ref_log_probs"] if "beta" in settings else [])]
    assert outside[channels].notna().all(None) and len(outside) > 20
    batch = bundle.micro_batches(0)[0].batch
    assert int(batch["mask"].sum()) == int(tokens[tokens["micro_batch"] == 0]["mask"].sum())
    print(f"{len(written)} tool responses, {len(outside)} of {len(tokens)} tokens not the model's")


def test_a_response_cut_off_after_its_tool_is_said_to_be_cut_off(train, tool_folder):
    @functools.wraps(add)
    def wordy(a, b):
        return add(a, b) + " that is all there is to say" * ((a + b) % 2)

    trainer, bundle = train(tool_folder, tools=[wordy], mask_truncated_completions=True, max_completion_length=73)
    compare(trainer, bundle)
    table = bundle.tokens().to_pandas()
    reasons = table.groupby(["rollout", "row"])["mask_reason"].agg(set).tolist()
    print("reasons of each response:", reasons)
    assert {2} in reasons and {0, 1} in reasons
    cut_off = table[table["mask_reason"] == 2]
    assert cut_off["old_log_probs"].isna().all()


def test_a_tool_whose_result_finds_no_room_leaves_nothing_behind(train, tool_folder):
    trainer, bundle = train(tool_folder, tools=[add], rewards=[said, called], max_completion_length=40)
    compare(trainer, bundle)
    assert sum(called(trainer.scored[0]["completions"])) > 0
    assert "mask_reason" not in bundle.tokens(rollout=0).column_names


def test_training_with_tools_is_bit_identical_with_and_without_capture(train, tool_folder):
    settings = {"tools": [add], "beta": 0.05}
    without = train(tool_folder, capture=False, cls=GRPOTrainer, **settings)
    captured, bundle = train(tool_folder, cls=GRPOTrainer, **settings)
    assert len(of_tools(bundle)) > 0
    identical(without, captured)


@pytest.mark.parametrize("mode", ["sequence_truncate", "token_truncate"])
def test_where_nobody_sampled_there_is_no_log_prob_of_the_sampler(train, tool_folder, mode):
    settings = {"use_vllm": True, "vllm_mode": "server", "vllm_importance_sampling_mode": mode, "max_steps": 2}
    ends = {chat_tokenizer().eos_token_id, chat_tokenizer().pad_token_id}
    with sampler(tool_folder, ends, unscored=0.05):
        trainer, bundle = train(tool_folder, tools=[add], **settings)
    compare(trainer, bundle)
    table = bundle.tokens(rollout=0).to_pandas()
    outside, counted = table[table["mask"] == 0], table[table["mask"] == 1]
    assert len(outside) > 20 and outside["rollout_log_probs"].isna().all()
    assert 0 < counted["rollout_log_probs"].isna().mean() < 0.2
    assert outside["old_log_probs"].notna().all()


class Counter:
    """An environment that asks, lets itself be counted up, and rewards."""

    def reset(self, **_):
        self.total = 0
        return " Count!"

    async def add(self, a: int, b: int) -> str:
        """
        Add two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        await asyncio.sleep(0)
        self.total += a + b
        return f"the sum is {a + b}, the total {self.total}"

    def get_reward(self):
        return 0.1 * self.total


def test_an_environment_writes_into_prompt_and_response_and_rewards(train, tool_folder):
    trainer, bundle = train(tool_folder, environment_factory=Counter, rewards=[said], max_steps=5)
    compare(trainer, bundle)
    assert bundle.manifest.reward_names == ["said", "Counter"]
    responses = bundle.responses(rollout=0).to_pylist()
    assert all(json.loads(each["messages"])[-1]["content"].endswith("? Count!") for each in responses)
    assert all("? Count!<|im_end|>" in each["prompt"] for each in responses)
    assert any("the total" in text for _, text in of_tools(bundle))


def two_turns(prompts, trainer):
    """Two turns of three tokens, with a word of the environment's between them; log-probs are the sampler's."""
    tokenizer = trainer.processing_class
    result = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": [], "turns": []}
    between = tokenizer(" naïvely ☃")["input_ids"]
    for prompt in prompts:
        asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        ids, log_probs, mask = [], [], []
        for turn in range(2):
            given = torch.tensor([asked + ids])
            made = trainer.model.generate(
                given, max_new_tokens=3, do_sample=True, output_logits=True, return_dict_in_generate=True
            )
            new = made.sequences[0, given.shape[1] :].tolist()
            scores = torch.stack(made.logits).log_softmax(-1)[:, 0]
            ids, mask = ids + new, mask + [1] * len(new)
            log_probs += [scores[place, token].item() for place, token in enumerate(new)]
            if turn == 0:
                # Whoever writes an environment fills in zeros, as TRL does for its tools; or knows better.
                ids, mask = ids + between, mask + [0] * len(between)
                log_probs += [-0.5, *[0.0] * (len(between) - 1)]
        for key, value in zip(result, (asked, ids, log_probs, mask, 2), strict=True):
            result[key].append(value)
    return result


def turns(completions, turns, **_):
    return [0.1 * number * len(str(text)) for number, text in zip(turns, completions, strict=True)]


def test_a_rollout_of_the_users_own_brings_its_mask_log_probs_and_columns(train):
    torch.manual_seed(0)
    trainer, bundle = train(chat_llama(chat_tokenizer()), rollout_func=two_turns, rewards=[turns])
    compare(trainer, bundle)
    table = bundle.tokens(rollout=0).to_pandas()
    assert {text for _, text in of_tools(bundle)} == {" naïvely ☃"}
    outside = table[table["mask"] == 0]
    assert set(outside["rollout_log_probs"].dropna()) == {-0.5}, "a filler is not a log-prob"
    assert table[table["mask"] == 1]["rollout_log_probs"].notna().all()


TURNS = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": 'Hi "there" <|im_end|> \n ☃'},
    {"role": "assistant", "content": "It is naïve."},
]


def test_conversations_keep_their_turns_and_the_prompt_is_what_the_model_saw(train):
    tokenizer = copy.deepcopy(chat_tokenizer())
    tokenizer.chat_template = chat_template_utils.qwen3_chat_template
    prompts = [[*TURNS[: 1 + 2 * (n % 2)], chat[0]] for n, chat in enumerate(CHATS)]
    extra = {"answer": list(range(100)), "meta": [{"source": "☃", "level": n} for n in range(100)]}
    torch.manual_seed(0)
    trainer, bundle = train(
        chat_llama(tokenizer),
        tokenizer=tokenizer,
        dataset=Dataset.from_dict({"prompt": prompts, **extra}),
        max_completion_length=6,
        chat_template_kwargs={"enable_thinking": False},
        dataloader_num_workers=1,
    )
    compare(trainer, bundle)
    assert type(trainer.scored[0]["completions"][0][0]) is dict
    kept = set()
    for number, scored in enumerate(trainer.scored):
        for response in bundle.responses(rollout=number).to_pylist():
            messages = json.loads(response["messages"])
            assert messages == scored["prompts"][response["row"]]
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            assert response["prompt"] == text and text.endswith("<think>\n\n</think>\n\n")
            kept.add(len(messages))
    assert kept == {2, 4}


PICTURES = [Image.new("RGB", (20 + n, 30), (n * 40, 0, 0)) for n in range(4)]
ASKED = {"role": "user", "content": "What colour is it?"}


def embedded(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


WITH_IMAGES = {
    "in a column": {
        "prompt": [[*[TURNS[0]] * (n > 1), ASKED] for n in range(4)],
        "images": [[picture] * (1 + n % 2) for n, picture in enumerate(PICTURES)],
    },
    "in the message": {
        "prompt": [
            [ASKED | {"content": [{"type": "image", "image": embedded(each)}, {"type": "text", "text": "What?"}]}]
            for each in PICTURES
        ]
    },
}


def with_images(train, where, **settings):
    dataset = Dataset.from_dict(WITH_IMAGES[where])
    given = {"rewards": [said], "dataset": dataset, "tokenizer": image_processor(), "max_completion_length": 8}
    return train(small_llava(), max_steps=4, **given | settings)


@pytest.mark.parametrize("where", WITH_IMAGES)
def test_an_image_is_one_marker_in_the_prompt_and_in_the_messages(train, where):
    trainer, bundle = with_images(train, where)
    compare(trainer, bundle)
    assert "pixel_values" in trainer.generated[0]
    image, seen = trainer.processing_class.image_token_id, set()
    for number, batch in enumerate(trainer.generated):
        for response in bundle.responses(rollout=number).to_pylist():
            row = response["row"]
            n = int((batch["prompt_ids"][row] == image).sum()) // 16
            assert response["prompt"].count("image") == n
            assert "⟨image, 16 tokens⟩\n" * n + "What" in response["prompt"]
            content = json.loads(response["messages"])[-1]["content"]
            assert [part["type"] for part in content] == ["image"] * n + ["text"]
            picture = trainer.scored[number]["prompts"][row][-1]["content"][0]["image"]
            marker = "⟨image/png⟩" if where == "in the message" else f"⟨image, {picture.size[0]} × 30⟩"
            assert content[0]["image"] == marker
            assert len(response["messages"]) < 400
            seen.add(n)
    assert seen == ({1} if where == "in the message" else {1, 2})


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"image_token_ids": [7, 8, 9], "video_token_ids": [None]}, {7: "image", 8: "image", 9: "image"}),
        ({"image_token_id": 7, "video_token_id": 8, "audio_token_id": None}, {7: "image", 8: "video"}),
        ({}, {}),
    ],
    ids=["transformers 5", "before it", "a tokenizer"],
)
def test_a_processor_says_which_tokens_stand_for_what(processor, expected):
    assert placeholders(SimpleNamespace(**processor)) == expected


def test_training_on_images_is_bit_identical_with_and_without_capture(train):
    without = with_images(train, "in a column", capture=False, cls=GRPOTrainer)
    captured, _ = with_images(train, "in a column", cls=GRPOTrainer)
    identical(without, captured)
