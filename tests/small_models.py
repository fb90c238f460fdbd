"""Models small enough to train in a test that can do what a run needs of them: call a tool, see an image."""

import random
from functools import cache

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from trl import chat_template_utils

MARKUP = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<image>"]
CHATS = [
    [{"role": "user", "content": f"What is {a} plus {b}?"}, {"role": "assistant", "content": f"It is {a + b}."}]
    for a in range(10)
    for b in range(10)
]


def add(a: int, b: int) -> str:
    """
    Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return f"the sum is {a + b}, naïvely ☃"


@cache
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the chats above, with the template of Qwen2.5; a snowman takes three tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = chat_template_utils.qwen2_5_chat_template
    texts = [message["content"] for chat in CHATS for message in chat]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [template, *texts * 3],
        trainers.BpeTrainer(vocab_size=700, special_tokens=MARKUP, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_tokens([AddedToken(f"{side}tool_call>", special=False) for side in ("<", "</")])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )
    made.chat_template = template
    return made


def chat_llama(tokenizer, **changes) -> LlamaForCausalLM:
    """One layer, 64 wide."""
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "name_or_path": "chat-llama",
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).float()


def tool_llama(steps: int = 150) -> LlamaForCausalLM:
    """Taught to answer at once, or to call `add` and answer after it; now and then it calls what does not exist."""
    tokenizer, draw = chat_tokenizer(), random.Random(0)
    torch.manual_seed(0)
    model = chat_llama(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def conversation() -> tuple[list[int], int]:
        question, answer = draw.choice(CHATS)
        a, b = (int(word.strip("?")) for word in question["content"].split() if word.strip("?").isdigit())
        question = question | {"content": question["content"] + draw.choice(["", " Count!"])}
        name = "add" if draw.random() < 0.8 else "sum"
        call = {"type": "function", "function": {"name": name, "arguments": {"a": a, "b": b}}}
        result = add(a, b) if name == "add" else {"error": f"Tool {name} not found."}
        turns = [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": name, "content": str(result)},
        ]
        turns = turns if draw.random() < 0.9 else []
        whole = tokenizer.apply_chat_template([question, *turns, answer], tools=[add], tokenize=False)
        asked = tokenizer.apply_chat_template([question], tools=[add], add_generation_prompt=True, tokenize=False)
        return tokenizer(whole.rstrip("\n"))["input_ids"], len(tokenizer(asked)["input_ids"])

    for _ in range(steps):
        batch = [conversation() for _ in range(4)]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row, _ in batch], True, tokenizer.pad_token_id)
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        for row, (_, asked) in enumerate(batch):
            labels[row, :asked] = -100
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@cache
def image_processor() -> LlavaProcessor:
    """A picture of 16 × 16 in patches of 4: 16 placeholders, of which the marker is made."""
    tokenizer = chat_tokenizer()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="full",
        chat_template=chat_template_utils.llava_next_chat_template,
    )


def small_llava() -> LlavaForConditionalGeneration:
    """A language model of one layer that sees through a vision tower of one."""
    tokenizer = chat_tokenizer()
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=chat_llama(tokenizer).config,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).float()
