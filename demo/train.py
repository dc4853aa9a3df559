"""Train the demo model: a byte-level BPE tokenizer and a 3.3M-parameter Llama on Tiny Shakespeare.

Run from anywhere, on one CPU core:

    python demo/train.py --minutes 22

It writes a Hugging Face checkpoint folder (`demo/model/`) that Baton, transformers or any other
engine for Llama can serve. The model card in that folder says what came out.

The script knows nothing of Baton: it needs torch (2.9 or newer, for Muon), transformers,
tokenizers, rich and matplotlib. The last tenth of the text is held out. Neither the tokenizer nor
the model sees it; it only measures, and says which checkpoint to keep.
"""

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).resolve().parent
DEFAULT_DATA = FOLDER.parent.parent / "shared" / "data" / "tinyshakespeare.txt.gz"

BOS, EOS = "<|bos|>", "<|eos|>"
BOS_ID, EOS_ID = 0, 1
VOCAB_SIZE = 1536
MAX_POSITIONS = 2048

# Words with their leading space, numbers, punctuation with the line break that follows it. Keeping
# ":\n" and ",\n" together saves a token on nearly every line of verse.
SPLIT = (
    r"(?i:'s|'t|'d|'re|'ve|'m|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A conversation is a scene: each message is a speech, under its `name` or the role's default part.
CHAT_TEMPLATE = """\
{%- set parts = {'system': 'CHORUS', 'user': 'ROMEO', 'assistant': 'JULIET'} -%}
{{- bos_token -}}
{%- for message in messages -%}
{{- (message.get('name') or parts.get(message['role'], message['role'])) | upper + ':\\n' -}}
{{- message['content'] | trim + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- parts['assistant'] + ':\\n' -}}{%- endif -%}
"""

TOKENS_PER_STEP = 4096
DIALOGUE_SHARE = 0.25
DROPOUT = 0.1
WEIGHT_DECAY = 0.1
MATRIX_LR, OTHER_LR = 5e-3, 3e-3
WARM_UP, FINAL_LR_SHARE = 0.03, 0.02
MAX_GRAD_NORM = 1.0
TRAIN_WINDOW = 512
NUM_EVALS = 12
SEED = 1564

TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the learning curve; losses in bits per byte of text."""

    minutes: float
    num_tokens: int
    train: float
    held_out: float

    def __str__(self) -> str:
        return f"train {self.train:.3f}, held out {self.held_out:.3f} bits per byte"


@dataclass(frozen=True, slots=True)
class Corpus:
    """The text as token ids (int64, 1-D), and where a training window may start.

    `plain` is the text as it is. `dialogue` is the same text with every gap between two speeches
    replaced by EOS, which is how the chat template writes a conversation: from it the model learns
    to end a speech, while plain prompts run on from speech to speech.
    """

    plain: Tensor
    plain_starts: Tensor
    dialogue: Tensor
    dialogue_starts: Tensor
    held_out: Tensor
    num_bytes_train: int
    num_bytes_held_out: int

    @property
    def bits_per_nat_train(self) -> float:
        """Turns nats per token into bits per byte, which do not depend on the tokenizer."""
        return len(self.plain) / self.num_bytes_train / math.log(2)

    @property
    def bits_per_nat_held_out(self) -> float:
        """The same for the held-out text."""
        return len(self.held_out) / self.num_bytes_held_out / math.log(2)


# 1. Text and tokens


def read_text(path: Path) -> tuple[str, str]:
    """The first nine tenths of the text, to train on, and the last tenth, held out."""
    text = gzip.decompress(path.read_bytes()).decode()
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE tokenizer: any UTF-8 text can be encoded and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def encode_corpus(tokenizer: Tokenizer, train: str, held_out: str) -> Corpus:
    """Encode both parts; windows start at the start of a line, as prompts do."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    plain = torch.tensor(encode(train))
    ends_line = torch.tensor(
        [tokenizer.decode([token]).endswith("\n") for token in range(tokenizer.get_vocab_size())]
    )
    dialogue = torch.tensor(
        [token for speech in train.split("\n\n") for token in [*encode(speech.strip()), EOS_ID]]
    )
    return Corpus(
        plain=plain,
        plain_starts=ends_line[plain].nonzero().squeeze(1) + 1,
        dialogue=dialogue,
        dialogue_starts=(dialogue == EOS_ID).nonzero().squeeze(1) + 1,
        held_out=torch.tensor(encode(held_out)),
        num_bytes_train=len(train.encode()),
        num_bytes_held_out=len(held_out.encode()),
    )


def window_length(progress: float, step: int) -> int:
    """Mostly TRAIN_WINDOW; later also the full length, so that every position is trained.

    Long windows cost half as much again on a CPU, because of attention, and are of use only once
    the model has something to say.
    """
    return MAX_POSITIONS if progress > 0.7 and step % 4 == 0 else TRAIN_WINDOW


def sample_windows(corpus: Corpus, length: int, generator: torch.Generator) -> Tensor:
    """Random windows that begin with BOS: [TOKENS_PER_STEP / length, length + 1]."""

    def window(stream: Tensor, starts: Tensor) -> Tensor:
        starts = starts[starts <= len(stream) - length]
        start = int(starts[torch.randint(len(starts), (), generator=generator)])
        return F.pad(stream[start : start + length], (1, 0), value=BOS_ID)

    num_windows = TOKENS_PER_STEP // length
    is_dialogue = torch.rand(num_windows, generator=generator) < DIALOGUE_SHARE
    return torch.stack(
        [
            window(corpus.dialogue, corpus.dialogue_starts)
            if chosen
            else window(corpus.plain, corpus.plain_starts)
            for chosen in is_dialogue.tolist()
        ]
    )


# 2. Model and optimizers


def build_model() -> LlamaForCausalLM:
    """A Llama whose heads and widths divide by tensor-parallel sizes 1, 2 and 4."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    add_dropout(model)
    return model


def add_dropout(model: LlamaForCausalLM) -> None:
    """Drop activations where each branch joins the residual stream; Llama itself has no such place.

    Hooks leave the module, and so the checkpoint, an ordinary Llama.
    """

    def drop(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return F.dropout(output, DROPOUT, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    others = [p for name, p in model.named_parameters() if not name.endswith("_proj.weight")]
    return [
        torch.optim.Muon(
            matrices, lr=MATRIX_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ]


def lr_share(progress: float) -> float:
    """Linear warm-up, then a cosine down to FINAL_LR_SHARE; `progress` is in [0, 1]."""
    if progress < WARM_UP:
        return progress / WARM_UP
    cosine = 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine


# 3. Training


def token_losses(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Nats of every token but the first of each window: [num_windows, length - 1]."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits.float()
    return F.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none")


@torch.inference_mode()
def held_out_nats(model: LlamaForCausalLM, tokens: Tensor, window: int, stride: int) -> float:
    """Mean nats per held-out token, each token counted once.

    Windows of `window` tokens advance by `stride`; after the first window only the last `stride`
    tokens of each are counted, so these have at least `window - stride` tokens before them.
    """
    model.eval()
    total = 0.0
    end = 0
    while end < len(tokens):
        counted_from, end = end, min(max(window, end + stride), len(tokens))
        begin = max(0, end - window)
        losses = token_losses(model, F.pad(tokens[begin:end], (1, 0), value=BOS_ID)[None])
        total += float(losses[0, counted_from - begin :].sum())
    return total / len(tokens)


def train(
    model: LlamaForCausalLM, corpus: Corpus, seconds: float, report: Callable[[float, str], None]
) -> list[Point]:
    """Train for `seconds`, and leave `model` at its best held-out checkpoint.

    The schedule follows the clock and not a number of steps, so that a slower machine trains less
    but still ends its cosine. Hence two runs with one seed agree closely and not to the bit.
    """
    optimizers = build_optimizers(model)
    base_lrs = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    best_state: dict[str, Tensor] = {}
    points: list[Point] = []
    recent: list[float] = []
    num_tokens = 0

    for step, progress in enumerate(progress_until(seconds)):
        # 1. One step on fresh windows.
        for optimizer, base_lr in zip(optimizers, base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = base_lr * lr_share(progress)
        model.train()
        windows = sample_windows(corpus, window_length(progress, step), torch.default_generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = token_losses(model, windows).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        num_tokens += TOKENS_PER_STEP
        recent.append(loss.item() * corpus.bits_per_nat_train)

        # 2. At regular times, and after the last step, measure; keep the best.
        if progress >= (len(points) + 1) / NUM_EVALS:
            nats = held_out_nats(model, corpus.held_out, TRAIN_WINDOW, TRAIN_WINDOW)
            bits = nats * corpus.bits_per_nat_held_out
            if bits < min((point.held_out for point in points), default=math.inf):
                best_state = {name: value.clone() for name, value in model.state_dict().items()}
            train_bits = sum(recent) / len(recent)
            points.append(Point(progress * seconds / 60, num_tokens, train_bits, bits))
            recent.clear()
        report(progress, str(points[-1]) if points else "")

    model.load_state_dict(best_state)
    return points


def progress_until(seconds: float) -> Iterator[float]:
    """The share of the time gone, once per step; the last step sees exactly 1.0."""
    begin = time.monotonic()
    progress = 0.0
    while progress < 1.0:
        progress = min(1.0, (time.monotonic() - begin) / seconds)
        yield progress


# 4. What is kept


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint: float16 weights, configuration, tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, do_sample=True, temperature=TEMPERATURE
    ).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(tokenizer_config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text)


def save_metrics(corpus: Corpus, points: list[Point], folder: Path) -> dict[str, int | float]:
    """Measure the checkpoint as saved, in float16, and write what the model card quotes."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    metrics: dict[str, int | float] = {"num_parameters": model.num_parameters()}
    for window in (TRAIN_WINDOW, MAX_POSITIONS):
        nats = held_out_nats(model, corpus.held_out, window, window // 2)
        metrics[f"perplexity_per_token_{window}"] = math.exp(nats)
        metrics[f"perplexity_per_byte_{window}"] = 2 ** (nats * corpus.bits_per_nat_held_out)
        metrics[f"bits_per_byte_{window}"] = nats * corpus.bits_per_nat_held_out
    text = json.dumps({**metrics, "curve": [asdict(point) for point in points]}, indent=1)
    (folder / "metrics.json").write_text(text + "\n")
    return metrics


def plot_curve(points: list[Point], path: Path) -> None:
    """Draw both losses over time."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    minutes = [point.minutes for point in points]
    axes.plot(minutes, [point.train for point in points], label="train, with dropout")
    axes.plot(minutes, [point.held_out for point in points], label="held out")
    axes.set(xlabel="minutes on one core", ylabel="bits per byte")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


@torch.inference_mode()
def sample_text(folder: Path, tokenizer: Tokenizer, prompt: str, num_tokens: int) -> str:
    """Continue `prompt` with the checkpoint as saved."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = tokenizer.encode(prompt).ids
    while num_tokens > 0 and tokens[-1] != EOS_ID:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        weights = (logits / TEMPERATURE).softmax(-1)
        tokens.append(int(torch.multinomial(weights, 1)))
        num_tokens -= 1
    return str(tokenizer.decode(tokens))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    data = Path(os.environ.get("BATON_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=data, help="the text, gzipped (%(default)s)")
    parser.add_argument("--output", type=Path, default=FOLDER / "model", help="folder to write")
    parser.add_argument("--minutes", type=float, default=22.0, help="training time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser.parse_args()


def main() -> None:
    """Text, tokenizer, model, training, checkpoint, in this order."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    console = Console()

    train_text, held_out_text = read_text(arguments.data)
    tokenizer = train_tokenizer(train_text)
    corpus = encode_corpus(tokenizer, train_text, held_out_text)
    model = build_model()
    console.print(
        f"{model.num_parameters():,} parameters; {len(corpus.plain):,} tokens to train on, "
        f"{len(corpus.held_out):,} held out; "
        f"{corpus.num_bytes_held_out / len(corpus.held_out):.2f} bytes per token",
        soft_wrap=True,
    )

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        points = train(
            model,
            corpus,
            60 * arguments.minutes,
            lambda progress, text: bar.update(task, completed=progress, description=text),
        )

    save_model(model, tokenizer, arguments.output)
    plot_curve(points, arguments.output / "curve.png")
    console.print_json(data=save_metrics(corpus, points, arguments.output))
    console.print(
        sample_text(arguments.output, tokenizer, "ROMEO:\n", 200), markup=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()
