"""Census-Income (KDD): two text files of 42 columns without a header, and the three usual labels.

Order, types and values of the columns: census-income.names of the UCI repository
(archive.ics.uci.edu/dataset/117/census+income+kdd). Fields are separated by a comma and a space;
`?` and `Not in universe` are values, and so is the `NA` of hisp_origin. The short names are those
of public MMoE implementations.

Labels as in Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018: income above 50,000, never married, education of at least some
college.
"""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.convert.columns import Column, schema_of, typed, wrong_value
from raymtl.data.convert.plan import Options, Piece, Plan, Tally, cut_notes, require_rows
from raymtl.data.convert.row_groups import RowGroups
from raymtl.data.convert.text import Block, Form, blocks, files_in
from raymtl.errors import InputError

_NAMES = """
age class_worker det_ind_code det_occ_code education wage_per_hour hs_college marital_stat
major_ind_code major_occ_code race hisp_origin sex union_member unemp_reason full_or_part_emp
capital_gains capital_losses stock_dividends tax_filer_stat region_prev_res state_prev_res
det_hh_fam_stat det_hh_summ instance_weight mig_chg_msa mig_chg_reg mig_move_reg mig_same
mig_prev_sunbelt num_emp fam_under_18 country_father country_mother country_self citizenship
own_or_self vet_question vet_benefits weeks_worked year income
"""
_INTEGERS = """
age det_ind_code det_occ_code wage_per_hour capital_gains capital_losses stock_dividends num_emp
own_or_self vet_benefits weeks_worked year
"""
NAMES, INTEGERS = tuple(_NAMES.split()), frozenset(_INTEGERS.split())
COLUMNS = tuple(
    Column(
        name,
        pa.int64()
        if name in INTEGERS
        else (pa.float64() if name == "instance_weight" else pa.string()),
        required=True,
    )
    for name in NAMES
)
FORM = Form(NAMES, has_header=False, quotes=False)
INCOMES = pa.array(["- 50000.", "50000+."])
COLLEGE = pa.array(
    [
        "Some college but no degree",
        "Associates degree-occup /vocational",
        "Associates degree-academic program",
        "Bachelors degree(BA AB BS)",
        "Masters degree(MA MS MEng MEd MSW MBA)",
        "Prof school degree (MD DDS DVM LLB JD)",
        "Doctorate degree(PhD EdD)",
    ]
)
LABELS = ("label_income_gt_50k", "label_never_married", "label_some_college_or_more")
SCHEMA = pa.schema(
    [*schema_of(COLUMNS), *((name, pa.int8()) for name in LABELS), ("row", pa.int64())]
)
OUTPUTS = {"census-income.data": "train.parquet", "census-income.test": "test.parquet"}
"""Raw file -> what it becomes."""


def plan(url: str) -> Plan:
    """Finds census-income.data and census-income.test, or one of them, perhaps with .gz.

    Raises:
        InputError: neither is there, or one is there packed and unpacked.
    """
    files, pieces, notes = files_in(url), [], []
    for raw, output in OUTPUTS.items():
        there = [files[name] for name in (raw, f"{raw}.gz") if name in files]
        if len(there) > 1:
            raise InputError(
                "a raw file is there twice",
                f"{url}: {raw} and {raw}.gz",
                "one of them",
                "remove the other",
            )
        pieces += [Piece(output, (file,)) for file in there]
        notes += [] if there else [f"no {raw}: no {output}"]
    if not pieces:
        raise InputError(
            "the files of Census-Income (KDD) are not there",
            f"{url}: {', '.join(list(files)[:5]) or 'no files'}",
            "census-income.data and census-income.test, perhaps with .gz",
            "unpack the archive of the UCI repository, and name that folder",
        )
    return Plan(tuple(pieces), tuple(notes + cut_notes([p.inputs[0] for p in pieces])))


def write(piece: Piece, url: str, options: Options) -> Tally:
    """Writes one file with its labels, and `row`, its place in the file from 0."""
    with RowGroups(f"{url}/{piece.output}", SCHEMA) as out:
        for block in blocks(piece.inputs[0], FORM, options.watch):
            out.write(_labelled(block, out.num_rows))
    tally = Tally(out.num_rows)
    require_rows(tally, piece)
    return tally


def _labelled(block: Block, first_row: int) -> pa.Table:
    table = typed(block, COLUMNS, trim=True)
    income = table["income"].combine_chunks()
    unknown = pc.index(pc.is_in(income, value_set=INCOMES), False).as_py()
    if unknown >= 0:
        wanted = " or ".join(INCOMES.to_pylist())
        raise wrong_value(block, "income", unknown, income[unknown].as_py(), wanted)
    labels = (
        pc.equal(income, INCOMES[1]),
        pc.equal(table["marital_stat"], "Never married"),
        pc.is_in(table["education"], value_set=COLLEGE),
    )
    for name, label in zip(LABELS, labels, strict=True):
        table = table.append_column(name, label.cast(pa.int8()))
    rows = pa.array(range(first_row, first_row + table.num_rows), pa.int64())
    return table.append_column("row", rows)
