from kvtier.conversion.work import REFUSALS_KEPT, Conversion


def conversion() -> Conversion:
    return Conversion(
        source="a", destination="b", to="kvtier", tree="t", system="s", space="n", unproven=[]
    )


def test_report_counts_all_refusals_and_names_the_first() -> None:
    report = conversion()
    report.refuse("x", "unreadable", "no luck")
    for number in range(REFUSALS_KEPT):
        report.refuse(str(number), "short")
    assert report.refused == {"unreadable": 1, "short": REFUSALS_KEPT}
    assert report.refused_files == REFUSALS_KEPT + 1
    assert len(report.refusals) == REFUSALS_KEPT
    assert [each.reason for each in report.refusals[:2]] == ["no luck", "shorter than its block"]
