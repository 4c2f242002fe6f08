"""Times the work of benches/benches/accounting.rs in the Python libraries. See README.md for how to run it.

A library that is not installed is skipped and says so. Every line gives the seconds of one run (median of three where
it is quick) and the epsilon, so that figures can be compared.
"""

import argparse
import importlib
import importlib.util
import math
import statistics
import sys
import time
import types

DELTA = 1e-5
ONE = [(0.01, 1.0, 10_000)]
HUNDRED = [(0.01, 0.8 + 0.01 * i, 100) for i in range(100)]


def timed(library, name, work):
    times = []
    while True:
        start = time.perf_counter()
        value = work()
        times.append(time.perf_counter() - start)
        if len(times) >= 3 or sum(times) > 15:
            break
    print(f"{library:<16} {name:<44} {statistics.median(times):>10.4f} s   {value:.9f}", flush=True)


def dp_accounting_pld(segments, interval=1e-4):
    from dp_accounting.pld import privacy_loss_distribution as pld

    total = None
    for q, sigma, steps in segments:
        one = pld.from_gaussian_mechanism(
            sigma, sampling_prob=q, value_discretization_interval=interval, use_connect_dots=True
        ).self_compose(steps)
        total = one if total is None else total.compose(one)
    return total.get_epsilon_for_delta(DELTA)


def dp_accounting_rdp(orders):
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders)
    event = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.0))
    accountant.compose(event, 10_000)
    return accountant.get_epsilon(DELTA)


def dp_accounting_calibrate():
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    return dp_accounting.calibrate_dp_mechanism(
        PLDAccountant,
        lambda sigma: dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(sigma)), 1000
        ),
        2.0,
        DELTA,
        dp_accounting.LowerEndpointAndGuess(0.5, 1.0),
        tol=1e-4,
    )


def prv(segments, error=1e-3):
    from prv_accountant import PRVAccountant, PoissonSubsampledGaussianMechanism

    mechanisms = [PoissonSubsampledGaussianMechanism(sampling_probability=q, noise_multiplier=s) for q, s, _ in segments]
    steps = [n for _, _, n in segments]
    accountant = PRVAccountant(
        prvs=mechanisms, max_self_compositions=steps, eps_error=error, delta_error=DELTA / 1000
    )
    return accountant.compute_epsilon(delta=DELTA, num_self_compositions=steps)[2]


def opacus_prv_module():
    """Opacus' PRV analysis needs numpy and scipy only: imported without the package's own imports of torch."""
    spec = importlib.util.find_spec("opacus")
    if spec is None:
        raise ImportError("opacus is not installed")
    root = spec.submodule_search_locations[0]
    for name, path in [
        ("opacus", ""),
        ("opacus.accountants", "/accountants"),
        ("opacus.accountants.analysis", "/accountants/analysis"),
    ]:
        module = types.ModuleType(name)
        module.__path__ = [root + path]
        sys.modules[name] = module
    optimizers = types.ModuleType("opacus.optimizers")
    optimizers.DPOptimizer = object
    sys.modules["opacus.optimizers"] = optimizers
    return importlib.import_module("opacus.accountants.analysis.prv")


def opacus_prv(segments, error=1e-3):
    module = sys.modules.get("opacus.accountants.analysis.prv") or opacus_prv_module()
    prvs = [module.PoissonSubsampledGaussianPRV(q, s) for q, s, _ in segments]
    steps = [n for _, _, n in segments]
    # As opacus.accountants.PRVAccountant calls it.
    size = module.compute_safe_domain_size(
        prvs=prvs, max_self_compositions=steps, eps_error=error, delta_error=DELTA / 1000
    )
    mesh = error / math.sqrt(sum(steps) * math.log(12 / (DELTA / 1000)) / 2)
    domain = module.Domain.create_aligned(-size, size, mesh)
    discrete = [
        module.discretize(module.TruncatedPrivacyRandomVariable(p, domain.t_min, domain.t_max), domain) for p in prvs
    ]
    composed = module.compose_heterogeneous(dprvs=discrete, num_self_compositions=steps)
    return composed.compute_epsilon(DELTA, DELTA / 1000, error)[2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--slow", action="store_true", help="also prv_accountant on 100 segments (minutes)")
    slow = parser.parse_args().slow
    orders = [1.1 + 0.5 * i for i in range(100)]
    jobs = [
        ("dp_accounting", "PLD, 10,000 steps (interval 1e-4)", lambda: dp_accounting_pld(ONE)),
        ("opacus", "PRV, 10,000 steps (error 1e-3)", lambda: opacus_prv(ONE)),
        ("prv_accountant", "PRV, 10,000 steps (error 1e-3)", lambda: prv(ONE)),
        ("dp_accounting", "PLD, 100 segments (interval 1e-4)", lambda: dp_accounting_pld(HUNDRED)),
        ("opacus", "PRV, 100 segments (error 1e-3)", lambda: opacus_prv(HUNDRED)),
        ("dp_accounting", "calibration (2, 1e-5), 1,000 steps", dp_accounting_calibrate),
        ("dp_accounting", "RDP, 100 orders", lambda: dp_accounting_rdp(orders)),
    ]
    if slow:
        jobs.append(("prv_accountant", "PRV, 100 segments (error 1e-3)", lambda: prv(HUNDRED)))
    for library, name, work in jobs:
        try:
            timed(library, name, work)
        except Exception as error:  # a library's failure is a result too
            print(f"{library:<16} {name:<44} {type(error).__name__}: {str(error)[:120]}", flush=True)


if __name__ == "__main__":
    main()
