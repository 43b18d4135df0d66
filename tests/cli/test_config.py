from pathlib import Path

from click.testing import CliRunner

from kvtier.cli.main import kvtier


def test_config_show_prints_values_and_origins(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text("ram: 1GiB\ndisk: /x=1GB\n")
    arguments = ["config", "show", "--config", str(file), "--disk-io-threads", "8"]
    ran = CliRunner().invoke(kvtier, [*arguments, "--origin"], env={"KVTIER_RAM": "2GiB"})
    assert ran.exit_code == 0
    lines = {line.split("#")[0].strip(): line.split("# ")[-1] for line in ran.output.splitlines()}
    assert lines["capacity: 2GiB"] == "KVTIER_RAM"
    assert lines["path: /x"] == f"{file} line 2"
    assert lines["io_threads: 8"] == "--disk-io-threads"
    assert lines["direct_io: auto"] == "default"
    assert "#" not in CliRunner().invoke(kvtier, arguments).output


def test_config_example_is_valid_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text(CliRunner().invoke(kvtier, ["config", "example"]).output)
    ran = CliRunner().invoke(kvtier, ["config", "show", "--config", str(file)])
    assert ran.exit_code == 0
    assert "path: /mnt/nvme/kvtier" in ran.output


def test_config_refuses_wrong_setting_in_one_line() -> None:
    ran = CliRunner().invoke(kvtier, ["config", "show", "--ram", "20G"])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: --ram: '20G' is not a size; write 64GiB")
    assert ran.stderr.count("\n") == 1
