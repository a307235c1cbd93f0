"""What the WebUI puts around a checkpoint's text encoder (sd_hijack.py:205, sd_hijack_clip.py)."""

import os

import torch

from modules import paths, shared


class EmbeddingsWithFixes(torch.nn.Module):
    """Puts a person's embeddings in the place of words; none of the tests draws with one."""

    def __init__(self, wrapped, embeddings, textual_inversion_key="clip_l"):
        super().__init__()
        self.wrapped = wrapped

    def forward(self, input_ids):
        return self.wrapped(input_ids)


class FrozenCLIPEmbedderWithCustomWords(torch.nn.Module):
    """Prompts in chunks of 75 tokens; emphasis and schedules are read as words here."""

    chunk_length = 75

    def __init__(self, wrapped, hijack):
        super().__init__()
        self.wrapped = wrapped

    def tokenize(self, texts):
        return self.wrapped.tokenizer(texts, truncation=False, add_special_tokens=False, verbose=False)["input_ids"]

    def forward(self, texts):
        """Prompts → (B, 77 × chunks, D); the shorter ones are filled up, as those of a batch are."""
        tokens = self.tokenize(texts)
        count = max(1, *(-(-len(ids) // self.chunk_length) for ids in tokens))
        chunks = [self._chunk([ids[i * 75 : (i + 1) * 75] for ids in tokens]) for i in range(count)]
        return torch.cat(chunks, 1)

    def _chunk(self, tokens):
        tokenizer = self.wrapped.tokenizer
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        rows = [[begin, *ids, *[end] * (self.chunk_length + 1 - len(ids))] for ids in tokens]
        return self.wrapped.transformer(torch.tensor(rows), shared.opts.CLIP_stop_at_last_layers)


class DirWithTextualInversionEmbeddings:
    def __init__(self, path):
        self.path, self.mtime = path, None

    def has_changed(self):
        return os.path.isdir(self.path) and os.path.getmtime(self.path) != self.mtime

    def update(self):
        if os.path.isdir(self.path):
            self.mtime = os.path.getmtime(self.path)


class EmbeddingDatabase:
    """The embeddings that are read, by the tokens of their names (textual_inversion.py:103)."""

    def __init__(self):
        self.ids_lookup, self.word_embeddings, self.skipped_embeddings, self.embedding_dirs = {}, {}, {}, {}

    def add_embedding_dir(self, path):
        self.embedding_dirs[path] = DirWithTextualInversionEmbeddings(path)

    def register_embedding(self, embedding, model):
        ids = model.cond_stage_model.tokenize([embedding.name])[0]
        self.ids_lookup.setdefault(ids[0], []).append((ids, embedding))
        self.word_embeddings[embedding.name] = embedding

    def register_embedding_by_name(self, embedding, model, name):
        """With ``None`` it is taken out."""
        ids = model.cond_stage_model.tokenize([name])[0]
        self.ids_lookup[ids[0]] = [each for each in self.ids_lookup.get(ids[0], []) if each[1].name != name]
        self.word_embeddings.pop(name, None)

    def find_embedding_at_position(self, tokens, offset):
        for ids, embedding in self.ids_lookup.get(tokens[offset], ()):
            if tokens[offset : offset + len(ids)] == ids:
                return embedding, len(ids)
        return None, None


class StableDiffusionModelHijack:
    def __init__(self):
        self.comments, self.extra_generation_params, self.circular = [], {}, False
        self.embedding_db = EmbeddingDatabase()
        self.embedding_db.add_embedding_dir(os.path.join(paths.data_path, "embeddings"))

    def hijack(self, m):
        embeddings = m.cond_stage_model.transformer.text_model.embeddings
        embeddings.token_embedding = EmbeddingsWithFixes(embeddings.token_embedding, self)
        m.cond_stage_model = FrozenCLIPEmbedderWithCustomWords(m.cond_stage_model, self)

    def undo_hijack(self, m):
        m.cond_stage_model = m.cond_stage_model.wrapped
        embeddings = m.cond_stage_model.transformer.text_model.embeddings
        embeddings.token_embedding = embeddings.token_embedding.wrapped

    def apply_circular(self, enable):
        self.circular = enable


model_hijack = StableDiffusionModelHijack()
