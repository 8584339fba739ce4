"""TraDe: an encoder over the units of a compiled transformer and a decoder that writes its RASP program.

The encoder knows its units (see `features.py`) only by their kind and by the products of what one reads and
another writes. In each layer these products act twice: as a bias of the attention, and as the weights of messages that
run along the edges, from writers to readers and back. It is unmoved by any permutation or rotation of the residual
stream and by the order of the units.

`FlatEncoder` takes its place in the baseline (`encoder: flat`), which reads flattened weights as arXiv:2410.00061 does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput

from trade_hf.configuration_trade import TraDeConfig
from trade_hf.with_code import SavedWithCode

# Messages run along: reader a ← writer, writer ← reader a, the same for reader b, within a head, among those that write
# alike, among those that read alike.
RELATIONS = 7


class TraDePreTrainedModel(SavedWithCode, PreTrainedModel):
    config_class = TraDeConfig
    base_model_prefix = "model"
    main_input_name = "weight_features"
    input_modalities = ("weights",)
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(
                module.weight, std=0.02 if module is getattr(self, "lm_head", None) else module.in_features**-0.5
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _split(x: Tensor, heads: int) -> Tensor:
    """[batch, time, heads · size] → [batch, heads, time, size]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _type_of_products(x: Tensor) -> torch.dtype:
    """What autocast multiplies in: all layers take the same relations, which it would convert in each of them anew."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of attention, so that nothing comes of what is not allowed."""
    return torch.where(allowed, 0.0, -1e4).to(dtype)


def _eager_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor) -> Tensor:
    """Like torch's `scaled_dot_product_attention`, in plain products: faster on a CPU that has them in bf16."""
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    return scores.add_(attn_mask).softmax(-1) @ value


def _attend(config: TraDeConfig, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """[batch, head, time, size] and what is added to the scores → [batch, time, heads · size]."""
    eager = config._attn_implementation == "eager"
    attention = _eager_attention if eager else F.scaled_dot_product_attention
    return attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    def __init__(self, config: TraDeConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.up = nn.Linear(config.d_model, config.ffn_size)
        self.down = nn.Linear(config.ffn_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(F.gelu(self.up(self.norm(x)))))


class RelationalLayer(nn.Module):
    """Attention among units with a bias from their relations, and messages along the relations."""

    def __init__(self, config: TraDeConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.messages = nn.Linear(config.d_model, RELATIONS * config.message_size)
        self.message_norm = nn.LayerNorm(RELATIONS * config.message_size)
        self.out = nn.Linear(config.d_model + RELATIONS * config.message_size, config.d_model)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, relations: Tensor, bias: Tensor) -> Tensor:
        normed = self.norm(x).to(relations.dtype)
        query, key, value = (_split(part, self.config.num_heads) for part in self.qkv(normed).chunk(3, -1))
        attended = _attend(self.config, query, key, value, bias)
        messages = (relations @ _split(self.messages(normed), RELATIONS)).transpose(1, 2).flatten(2)
        messages = self.message_norm(messages).to(attended.dtype)
        x = x + self.out(torch.cat([attended, messages], -1))
        return self.ffn(x)


class TraDeEncoder(TraDePreTrainedModel):
    """Units and their relations → hidden states [batch, unit, d_model]."""

    def __init__(self, config: TraDeConfig) -> None:
        super().__init__(config)
        self.type_embedding = nn.Embedding(config.unit_types, config.d_model)
        self.layer_embedding = nn.Embedding(config.max_layers, config.d_model)
        self.value_embedding = nn.Embedding(config.value_buckets, config.d_model)
        if config.lines_before:
            self.lines_before = nn.Embedding(config.lines_before + 1, config.d_model)
        self.scalars = nn.Linear(config.feature_size - config.integer_features, config.d_model)
        self.relation_bias = nn.Linear(2 * RELATIONS, config.encoder_layers * config.num_heads)
        self.layers = nn.ModuleList(RelationalLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.post_init()

    def forward(
        self,
        weight_features: Tensor,
        weight_edges: Tensor,
        attention_mask: Tensor | None = None,
        lines_before: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        integers = self.config.integer_features
        kind, layer, value = weight_features[..., :integers].long().unbind(-1)
        scalars = weight_features[..., integers:].to(self.scalars.weight.dtype)
        x = (
            self.type_embedding(kind)
            + self.layer_embedding(layer)
            + self.value_embedding(value)
            + self.scalars(scalars)
        )
        if self.config.lines_before:
            x = x + self.lines_before(kind.new_zeros(len(kind)) if lines_before is None else lines_before)[:, None]
        a, b, *alike = weight_edges.to(x.dtype).unbind(1)
        means = [edges / edges.abs().sum(-1, keepdim=True).clamp(min=1) for edges in alike]
        relations = torch.stack([a, a.mT, b, b.mT, *means], 1).to(_type_of_products(x))
        if attention_mask is None:
            attention_mask = torch.ones(x.shape[:2], device=x.device)
        biases = self.attention_biases(relations, attention_mask)
        for block, bias in zip(self.layers, biases, strict=True):
            x = block(x, relations, bias)
        return BaseModelOutput(last_hidden_state=self.norm(x))

    def attention_biases(self, relations: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """For each layer [batch, head, unit, unit]: linear in the relations and in whether they are there at all."""
        padding = _mask(attention_mask > 0, relations.dtype)[:, None, None, :]
        there = (relations.abs() > 0.01).to(relations.dtype)
        features = torch.cat([relations, there, padding.expand_as(relations[:, :1])], 1).flatten(2)
        weight = F.pad(self.relation_bias.weight, (0, 1), value=1.0)
        biases = torch.baddbmm(self.relation_bias.bias[:, None], weight.expand(len(features), -1, -1), features)
        return biases.unflatten(2, relations.shape[2:]).chunk(self.config.encoder_layers, 1)


class FlatLayer(nn.Module):
    """Attention among pieces of weights, without relations."""

    def __init__(self, config: TraDeConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (_split(part, self.config.num_heads) for part in self.qkv(self.norm(x)).chunk(3, -1))
        return self.ffn(x + self.out(_attend(self.config, query, key, value, mask)))


class FlatEncoder(TraDePreTrainedModel):
    """Pieces of flattened weights (`features.to_pieces`) → hidden states [batch, piece, d_model]."""

    def __init__(self, config: TraDeConfig) -> None:
        super().__init__(config)
        self.parameter_embedding = nn.Embedding(config.parameter_kinds, config.d_model)
        self.layer_embedding = nn.Embedding(config.max_layers, config.d_model)
        self.place_embedding = nn.Embedding(config.value_buckets, config.d_model)
        self.entries = nn.Linear(config.piece_size, config.d_model)
        self.layers = nn.ModuleList(FlatLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.post_init()

    def forward(
        self, weight_features: Tensor, weight_edges: Tensor | None, attention_mask: Tensor | None = None, **kwargs
    ) -> BaseModelOutput:
        integers = self.config.integer_features
        kind, layer, place = weight_features[..., :integers].long().unbind(-1)
        x = self.entries(weight_features[..., integers:].to(self.entries.weight.dtype))
        x = x + self.parameter_embedding(kind) + self.layer_embedding(layer) + self.place_embedding(place)
        if attention_mask is None:
            attention_mask = torch.ones(x.shape[:2], device=x.device)
        mask = _mask(attention_mask > 0, x.dtype)[:, None, None, :]
        for block in self.layers:
            x = block(x, mask)
        return BaseModelOutput(last_hidden_state=self.norm(x))


ENCODERS = {"circuit": TraDeEncoder, "units": TraDeEncoder, "flat": FlatEncoder}


class DecoderLayer(nn.Module):
    def __init__(self, config: TraDeConfig, index: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        self.self_norm = nn.LayerNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.self_out = nn.Linear(config.d_model, config.d_model)
        self.cross_norm = nn.LayerNorm(config.d_model)
        self.cross_query = nn.Linear(config.d_model, config.d_model)
        self.cross_key_value = nn.Linear(config.d_model, 2 * config.d_model)
        self.cross_out = nn.Linear(config.d_model, config.d_model)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, causal: Tensor, memory: Tensor, memory_mask: Tensor, cache: EncoderDecoderCache | None
    ) -> Tensor:
        query, key, value = (_split(part, self.config.num_heads) for part in self.qkv(self.self_norm(x)).chunk(3, -1))
        if cache is not None:
            key, value = cache.self_attention_cache.update(key, value, self.index)
        x = x + self.self_out(_attend(self.config, query, key, value, causal))
        query = _split(self.cross_query(self.cross_norm(x)), self.config.num_heads)
        key, value = self.memory_keys(memory, cache)
        x = x + self.cross_out(_attend(self.config, query, key, value, memory_mask))
        return self.ffn(x)

    def memory_keys(self, memory: Tensor, cache: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        if cache is not None and cache.is_updated.get(self.index):
            layer = cache.cross_attention_cache.layers[self.index]
            return layer.keys, layer.values
        key, value = (_split(part, self.config.num_heads) for part in self.cross_key_value(memory).chunk(2, -1))
        if cache is not None:
            key, value = cache.cross_attention_cache.update(key, value, self.index)
            cache.is_updated[self.index] = True
        return key, value


class TraDeDecoder(TraDePreTrainedModel):
    """Tokens so far and the encoder's states → hidden states [batch, token, d_model].

    A token's place is told by its line and by its component in the line (operation, two arguments, function).
    """

    def __init__(self, config: TraDeConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.line = nn.Embedding(config.max_lines + 1, config.d_model)
        self.component = nn.Embedding(config.line_size, config.d_model)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        cache: EncoderDecoderCache | None = None,
        lines_before: Tensor | None = None,
    ) -> Tensor:
        past = cache.get_seq_length() if cache is not None else 0
        places = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        lines = places // self.config.line_size + (0 if lines_before is None else lines_before[:, None])
        lines = lines.clamp(max=self.config.max_lines)
        x = self.embedding(input_ids) + self.line(lines) + self.component(places % self.config.line_size)
        total = past + input_ids.shape[1]
        causal = _mask(places[:, None] >= torch.arange(total, device=input_ids.device), x.dtype)
        if memory_mask is None:
            memory_mask = torch.ones(memory.shape[:2], device=memory.device)
        mask = _mask(memory_mask > 0, memory.dtype)[:, None, None, :]
        for block in self.layers:
            x = block(x, causal, memory, mask, cache)
        return self.norm(x)


class TraDeModel(TraDePreTrainedModel):
    """Encoder and decoder without the head that predicts tokens."""

    _keys_to_ignore_on_load_unexpected = [r"unit_head\."]  # it is TraDeForConditionalGeneration's

    def __init__(self, config: TraDeConfig) -> None:
        super().__init__(config)
        self.encoder = ENCODERS[config.encoder](config)
        self.decoder = TraDeDecoder(config)
        self.post_init()

    def get_encoder(self, *args, **kwargs) -> TraDeEncoder | FlatEncoder:
        return self.encoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.embedding = value

    def forward(
        self,
        weight_features: Tensor | None = None,
        weight_edges: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        lines_before: Tensor | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        if encoder_outputs is None:
            encoder_outputs = self.encoder(weight_features, weight_edges, attention_mask, lines_before=lines_before)
        memory = encoder_outputs[0]
        hidden = self.decoder(decoder_input_ids, memory, attention_mask, past_key_values, lines_before)
        return Seq2SeqModelOutput(
            last_hidden_state=hidden, past_key_values=past_key_values, encoder_last_hidden_state=memory
        )


class TraDeForConditionalGeneration(TraDePreTrainedModel, GenerationMixin):
    """The decompiler: weights of a compiled transformer in, tokens of its RASP program out."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embedding.weight"}

    def __init__(self, config: TraDeConfig) -> None:
        super().__init__(config)
        self.model = TraDeModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.unit_head = nn.Linear(config.d_model, 2 * config.vocab_size + config.value_buckets)
        self.post_init()

    def get_encoder(self, *args, **kwargs) -> TraDeEncoder | FlatEncoder:
        return self.model.encoder

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        weight_features: Tensor | None = None,
        weight_edges: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        unit_labels: Tensor | None = None,
        lines_before: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """The loss is the mean over the tokens of `labels` [batch, token], -100 where there is none.

        In training, with `unit_labels` [batch, unit, 3] (see `dataset_builder/online.py`), the loss of `unit_head` is
        added: what each unit belongs to. This teaches the encoder some forty things an example where the program
        alone would teach one a line. `lines_before` [batch] says in training from where lines are numbered: as if so
        many stood before the program. So numbers are learned that no program of the training data is long enough for.
        """
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.shift_right(labels)
        if not use_cache:
            past_key_values = None
        outputs = self.model(
            weight_features=weight_features,
            weight_edges=weight_edges,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            lines_before=lines_before,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            tokens = (labels != -100).sum()
            in_all = tokens if num_items_in_batch is None else num_items_in_batch
            summed = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
            loss = summed / in_all
            if self.training and unit_labels is not None:
                unit_loss = self.unit_loss(outputs.encoder_last_hidden_state, unit_labels)
                loss = loss + self.config.unit_loss * unit_loss * tokens / in_all
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
        )

    def unit_loss(self, memory: Tensor, unit_labels: Tensor) -> Tensor:
        """Mean cross entropy of each unit's variable, function and value."""
        sizes = (self.config.vocab_size, self.config.vocab_size, self.config.value_buckets)
        logits = self.unit_head(memory).float().split(sizes, -1)
        total = memory.new_zeros(())
        for part, labels in zip(logits, unit_labels.unbind(-1), strict=True):
            summed = F.cross_entropy(part.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
            total = total + summed / (labels != -100).sum().clamp(min=1)
        return total

    def shift_right(self, labels: Tensor) -> Tensor:
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], 1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return self.shift_right(labels)
