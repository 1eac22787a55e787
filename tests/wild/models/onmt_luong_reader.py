"""An old sequence-to-sequence reader: packed bidirectional GRU, a decoder loop with input feed, Luong attention."""

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence as pack
from torch.nn.utils.rnn import pad_packed_sequence as unpack

PAD = 0


class Encoder(nn.Module):
    def __init__(self, dicts_size: int, word_vec_size: int, rnn_size: int) -> None:
        super().__init__()
        self.num_directions = 2
        assert rnn_size % self.num_directions == 0
        self.hidden_size = rnn_size // self.num_directions
        self.word_lut = nn.Embedding(dicts_size, word_vec_size, padding_idx=PAD)
        self.rnn = nn.GRU(word_vec_size, self.hidden_size, num_layers=1, bidirectional=True)

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # pack wants the longest first
        lengths, perm = torch.sort(lengths, 0, descending=True)
        back = torch.sort(perm)[1]
        emb = pack(self.word_lut(input.index_select(1, perm)), lengths.tolist())
        outputs, hidden_t = self.rnn(emb)
        outputs = unpack(outputs)[0]
        return hidden_t.index_select(1, back), outputs.index_select(1, back)


class GlobalAttention(nn.Module):
    """
    Global attention takes a matrix and a query vector, and
    computes a parameterized convex combination of the matrix based on the query.

            H_1 H_2 H_3 ... H_n
              q   q   q       q
                |  |   |       |
                  \\ |   |      /
                      .....
                  \\   |  /
                          a
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(dim, dim, bias=False)
        self.sm = nn.Softmax(dim=1)
        self.linear_out = nn.Linear(dim * 2, dim, bias=False)
        self.tanh = nn.Tanh()
        self.mask = None

    def applyMask(self, mask: Tensor) -> None:
        self.mask = mask

    def forward(self, input: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        input: batch x dim
        context: batch x sourceL x dim
        """
        targetT = self.linear_in(input).unsqueeze(2)  # batch x dim x 1

        # Get attention
        attn = torch.bmm(context, targetT).squeeze(2)  # batch x sourceL
        if self.mask is not None:
            attn.data.masked_fill_(self.mask, -float("inf"))
        attn = self.sm(attn)
        attn3 = attn.view(attn.size(0), 1, attn.size(1))  # batch x 1 x sourceL

        weightedContext = torch.bmm(attn3, context).squeeze(1)  # batch x dim
        contextCombined = torch.cat((weightedContext, input), 1)
        contextOutput = self.tanh(self.linear_out(contextCombined))
        return contextOutput, weightedContext, attn


class Decoder(nn.Module):
    def __init__(self, dicts_size: int, word_vec_size: int, rnn_size: int, input_feed: bool = True) -> None:
        super().__init__()
        self.input_feed = input_feed
        self.word_lut = nn.Embedding(dicts_size, word_vec_size, padding_idx=PAD)
        self.rnn = nn.GRUCell(word_vec_size + (rnn_size if input_feed else 0), rnn_size)
        self.attn = GlobalAttention(rnn_size)
        self.dropout = nn.Dropout(0.3)

    def forward(
        self, input: Tensor, hidden: Tensor, context: Tensor, init_output: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        emb = self.word_lut(input)
        outputs, contexts, attns = [], [], []
        output = init_output
        for emb_t in emb.split(1):
            emb_t = emb_t.squeeze(0)
            if self.input_feed:
                emb_t = torch.cat([emb_t, output], 1)
            hidden = self.rnn(emb_t, hidden)
            output, c, attn = self.attn(hidden, context.transpose(0, 1))
            output = self.dropout(output)
            outputs += [output]
            contexts += [c]
            attns += [attn]
        return torch.stack(outputs), torch.stack(contexts), torch.stack(attns)


class NMTReader(nn.Module):
    def __init__(self, encoder: Encoder, decoder: Decoder, generator: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.generator = generator

    def _fix_enc_hidden(self, h: Tensor) -> Tensor:
        #  the encoder hidden is  (layers*directions) x batch x dim
        #  we need to convert it to layers x batch x (directions*dim)
        return (
            h.view(h.size(0) // 2, 2, h.size(1), h.size(2))
            .transpose(1, 2)
            .contiguous()
            .view(h.size(0) // 2, h.size(1), h.size(2) * 2)
        )

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        src, tgt = src.t().contiguous(), tgt.t().contiguous()  # time first from here on
        lengths = src.data.ne(PAD).long().sum(0)
        enc_hidden, context = self.encoder(src, lengths)
        enc_hidden = self._fix_enc_hidden(enc_hidden)[0]
        self.decoder.attn.applyMask(src[: context.size(0)].data.eq(PAD).t())
        init_output = context.data.new(context.size(1), context.size(2)).zero_()
        _, contexts, _ = self.decoder(tgt, enc_hidden, context, init_output)
        return self.generator(contexts[-1])


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(17)
    encoder, decoder = Encoder(20, 6, 10), Decoder(15, 6, 10)
    model = NMTReader(encoder, decoder, nn.Sequential(nn.Linear(10, 4)))
    for p in model.parameters():
        p.data.uniform_(-1.2, 1.2)
    src, tgt = torch.randint(1, 20, (3, 9)), torch.randint(1, 15, (3, 4))
    src[0, 6:] = PAD  # not sorted by length
    src[2, 4:] = PAD
    return model.eval(), (src, tgt)


def _gru64(w: dict[str, Tensor], names: tuple[str, str, str, str], x: Tensor, h: Tensor) -> Tensor:
    """One step of one GRU on vectors; names are those of weight_ih, weight_hh, bias_ih and bias_hh."""
    n = len(h)
    gi, gh = w[names[0]] @ x + w[names[2]], w[names[1]] @ h + w[names[3]]
    r, z = (gi[:n] + gh[:n]).sigmoid(), (gi[n : 2 * n] + gh[n : 2 * n]).sigmoid()
    return (1 - z) * (gi[2 * n :] + r * gh[2 * n :]).tanh() + z * h


def reference(model: nn.Module, src: Tensor, tgt: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64, one example after another, without its padding and without a packed sequence."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    half = model.encoder.hidden_size
    real = src != PAD
    maps = torch.zeros(len(src), 1, tgt.shape[1], int(real.sum(1).max()), dtype=torch.float64)
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    logits = []
    for i in range(len(src)):
        words = w["encoder.word_lut.weight"][src[i][real[i]]]
        n = len(words)
        memory = torch.zeros(n, 2 * half, dtype=torch.float64)
        ends = []
        for side, order in (("", range(n)), ("_reverse", range(n - 1, -1, -1))):
            names = tuple(f"encoder.rnn.{p}_l0{side}" for p in parts)
            h = torch.zeros(half, dtype=torch.float64)
            for t in order:
                h = _gru64(w, names, words[t], h)
                memory[t, half * len(ends) : half * (len(ends) + 1)] = h
            ends.append(h)
        h = torch.cat(ends)
        fed = torch.zeros_like(h)
        names = tuple(f"decoder.rnn.{p}" for p in parts)
        for t, word in enumerate(tgt[i].tolist()):
            h = _gru64(w, names, torch.cat((w["decoder.word_lut.weight"][word], fed)), h)
            p = (memory @ (w["decoder.attn.linear_in.weight"] @ h)).softmax(0)
            maps[i, 0, t, :n] = p
            c = p @ memory
            fed = (w["decoder.attn.linear_out.weight"] @ torch.cat((c, h))).tanh()
        logits.append(w["generator.0.weight"] @ c + w["generator.0.bias"])
    return torch.stack(logits), [maps]


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The decoder loop as one (B, 1, T, S), a row for each step, zero on padding."""
    return reference(model, *inputs)[1]
