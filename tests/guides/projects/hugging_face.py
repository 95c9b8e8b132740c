"""What a user of ``transformers.Trainer`` has: a tokenizer, data sets of token ids, a collator and a checkpoint."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerFast

words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"word{index}" for index in range(60))]
core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
core.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
)
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core,
    pad_token="[PAD]",
    cls_token="[CLS]",
    sep_token="[SEP]",
    unk_token="[UNK]",
    model_input_names=["input_ids", "token_type_ids", "attention_mask"],
)
collator = DataCollatorWithPadding(tokenizer)


def sentences(count, seed):
    own = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        label = int(torch.randint(0, 3, (1,), generator=own))
        length = int(torch.randint(4, 20, (1,), generator=own))
        chosen = 20 * label + torch.randint(0, 20, (length,), generator=own)
        rows.append({**tokenizer(" ".join(f"word{int(word)}" for word in chosen)), "label": label})
    return rows


train_dataset, eval_dataset = sentences(256, 1), sentences(96, 2)


def train():
    """Train for a moment with the model's own loss, as a Trainer does, and save a checkpoint."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            num_labels=3,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for start in list(range(0, len(train_dataset), 32)) * 4:
        model(**collator(train_dataset[start : start + 32])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained("checkpoint-1000")
