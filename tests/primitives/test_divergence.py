import torch
from torch.testing import assert_close

from antibody_llm.primitives.divergence import coarse_kl, coarse_log_probs, token_kl


def test_kl_is_that_of_the_two_distributions():
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2).
    p, q = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    three_halves, half = torch.tensor([1.5, 0.5]).log()
    assert_close(token_kl(p, q), (0.75 * three_halves + 0.25 * half)[None])


def test_it_is_zero_where_both_agree_whatever_the_logits_have_been_raised_by():
    logits = torch.randn(5, 9)
    assert_close(token_kl(logits, logits + 3), torch.zeros(5), atol=1e-6, rtol=0)


def test_its_gradient_is_q_minus_p():
    p, q = torch.randn(4, 7), torch.randn(4, 7, requires_grad=True)
    (found,) = torch.autograd.grad(token_kl(p, q).sum(), q)
    assert_close(found, q.softmax(-1).detach() - p.softmax(-1))


def test_where_both_agree_bitwise_the_gradient_is_exactly_zero():
    logits = torch.randn(5, 50, requires_grad=True)
    (found,) = torch.autograd.grad(token_kl(logits, logits).sum(), logits)
    assert float(found.abs().max()) == 0.0


def test_a_coarse_kl_takes_all_other_tokens_as_one():
    # p = (1/2, 1/4, 1/8, 1/8), q = (1/4, 1/4, 1/4, 1/4); token 0 and the rest: (1/2, 1/2) and (1/4, 3/4).
    p, q = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log(), torch.zeros(1, 4)
    tokens = torch.tensor([[0]])
    log_p = coarse_log_probs(p, tokens)
    assert_close(log_p.exp(), torch.tensor([[0.5, 0.5]]))
    two, two_thirds, half, three_halves = torch.tensor([2.0, 2 / 3, 0.5, 1.5]).log()
    assert_close(coarse_kl(log_p, q, tokens), (0.5 * two + 0.5 * two_thirds)[None])
    assert_close(coarse_kl(log_p, q, tokens, reverse=True), (0.25 * half + 0.75 * three_halves)[None])


def test_a_coarse_kl_is_at_most_the_whole_one_and_is_it_where_one_token_is_left():
    p, q = torch.randn(20, 6), torch.randn(20, 6)
    whole = token_kl(p, q)
    for k in (1, 3, 5):
        tokens = p.topk(k, dim=1).indices
        coarse = coarse_kl(coarse_log_probs(p, tokens), q, tokens)
        assert bool((coarse <= whole + 1e-5).all())
    assert_close(coarse, whole, rtol=1e-4, atol=1e-5)
