r"""How many draws, operations and seconds a reliable susceptibility takes, for each estimator and over settings.

    python benchmarks/efficiency runs/efficiency                      # sample what is missing, then the tables
    python benchmarks/efficiency runs/efficiency --report             # the tables alone, of what is there
    python benchmarks/efficiency runs/efficiency --run runs/book --json efficiency.json

The work falls into cells: one component at one setting, some replicates with noise and minibatches of their own. Each
finished cell is a file and a row in ``cells.jsonl``; an interrupted run goes on with the next one. Seconds are CPU
seconds of one thread.

What is compared. All estimators read the same chains: six for each replicate, with noise ±ξ at nβ, nβ + η and nβ - η.

    name        covariance                              first moment             two-chain value from
    plain       sample covariance, one chain            mean, one chain          both of them
    antithetic  sample covariance, a mirrored pair      mean, a mirrored pair    both of them
    pairs       response, a tilted pair                 mean, a tilted pair      (not shown)
    quads       response, two mirrored tilted pairs     mean, all four           both of them
    own         as quads, but driven by the loss windows alone: the covariance with their loss, as the plain one

The two-chain value is taken per unit of rise (`analysis.per_rise`), as the z-score makes it.

How reliability is had. Over replicates r of tables X_r (tokens x components), let W be the mean of their covariance
over tokens and B the mean of that between different ones: B is signal, W - B is noise. With m times the draws the
covariance is K = B + (W - B) / m, so a column has reliability B_cc / K_cc (Spearman and Brown). Rows are columns scaled
by D = diag(K)^-1/2 and centred by P: their reliability is tr(P D B D) / tr(P D K D), near the mean cosine of rows from
two measurements. A plain covariance is almost all noise, its own B almost all error; its signal is that of the response
of chains that are driven by the text on which its g is taken (`runs.own_text`). Errors are jackknife standard errors
over replicates.

What it costs. Seconds a step and a token are measured in the cells and priced for `report.PRICED` probe tokens, those
of the book. Chains at nβ = 0 need no gradient; the two-chain value of a table pays for the unrestricted chain too.
"""
