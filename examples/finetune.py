"""Fine-tune a Hugging Face language model on whichever nodes come and go: python examples/finetune.py [MODEL] [TEXT].

MODEL is a name or folder that transformers loads on the nodes; without one, a small GPT-2 is built with random weights
over bytes. TEXT is a UTF-8 file that the nodes can read; without one, the documentation inside every Python.
Needs a running Fallow (`fallow up`) with two nodes. The trained model goes to out/finetune, for `from_pretrained`.
"""

import sys

import fallow

MODEL, TEXT = [*sys.argv[1:], "", ""][:2]
LENGTH = 64


def build():
    """The model, and what turns text into token ids."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

    if MODEL:
        return AutoModelForCausalLM.from_pretrained(MODEL).train(), AutoTokenizer.from_pretrained(MODEL).encode
    small = GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2)
    return GPT2LMHeadModel(small), lambda text: list(text.encode())


def read():
    """The text to train on."""
    if TEXT:
        with open(TEXT, encoding="utf-8") as file:
            return file.read()
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def train(session: fallow.ElasticSession) -> None:
    """Runs on every worker of the job; workers may come, leave and die between two batches."""
    import torch

    model, encode = build()
    model = session.model(model)
    ids = torch.tensor(encode(read()))
    samples = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    for batch in session.batches(samples):
        session.step(model(input_ids=batch, labels=batch).loss)


if __name__ == "__main__":
    with fallow.Client() as client:
        job = client.train(train, steps=100, global_batch=16, width=(1, 2), output="out/finetune", checkpoint_every=50)
        for event in client.watch(job.job):
            print(event.message)
