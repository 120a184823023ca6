"""medrec: nightly DICOM batches to auditable tumour-detection reports.

Follow a scan through the rooms, each of which knows only those before it: `dicom` reads a file and turns identity
into pseudonyms; `series` puts files into order or says why not, after `stacks` has taken them apart; `contrast` asks
whether they are what they are called; `routing` picks the series that a model's card (`prediction`) asks for;
`volume` gives them a place in the patient (`conversion` writes that as NIfTI); `plausibility` doubts what is no head;
`models` runs the networks; `findings` measures what they mark; `report` states facts and a careful verdict; `outputs`
writes them, `objects` for the study's own archive; `audit` seals digests of everything; `store` keeps studies, cases
and the ledger; `tracking` copies to MLflow what `shown` words. `pipeline` leads one study through all of them and
`writing` puts it on the `disk` (`pictured` and `ahead` do so for single images), `home` and `config` say where and
how, `cli` is what people type. `labels` takes in what people say of images; `learning` makes the weights:
`retraining` leads labels and the draft of a card (`drafts`) to a version that its `gate` lets pass, `registry` says
which is in force. `sources` bring studies and `dispatch` returns results, over the `network` to `peers`.
A `night` is one batch: `sentinels` with known answers go first, three studies at a time follow at its `pace`, and
`shards` share them among workers by `leases`; `schedule` says when, `standing` how things stand, `notices` tell
somebody, `backfill` makes reports again, a `depot` holds them a second time. Around them:
`events` says what may be written into the ledger, `delivery` empties the outbox, `mirror` holds MLflow against it,
`verification`, `replay`, `story` and `bundle` are for auditors, `privacy` for patients, `keeping` for operators;
`burned` covers text in pixels.
Prefect lives in the package `flows`, beside this one.
"""

__version__ = "0.1.0"
