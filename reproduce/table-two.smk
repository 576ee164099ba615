# The rules of table 2 of the first paper. Snakefile defines what they share with the other forms.
wildcard_constraints:
    model="(victim|shadow)-[^/]+",
    attacker="[^/]+",

def results_of(attacker):
    """results.json of each shadow of an attacker."""
    return [f"{RUNS}/shadow-{name}/results.json" for name in scale.shadow_names(scale.attackers[attacker])]


def collect_command(cell):
    words = ["-m", "reproduce.collect", str(scale.run_of(cell)), "--into", f"{RESULTS}/{cell.name}.json",
             "--images", f"{RESULTS}/{cell.setting}/images.json"]
    if cell.curve:
        words += ["--curve", *map(str, scale.selections.counts)]
    flags = {"--patches": cell.patches, "--maps": scale.has_maps(cell) and scale.drawn_scenes}
    return command(words + [flag for flag, wanted in flags.items() if wanted])


rule model:
    input:
        lambda w: [ancient(f"{RUNS}/{name}/results.json") for name in scale.needs_of_model(w.model)],
        ancient(expand(f"{scale.data_marks}/{{name}}.done", name=scale.data))
    output:
        f"{RUNS}/{{model}}/results.json"
    params:
        command=lambda w: start_or_resume(scale.model_command(w.model), LAUNCH)
    threads: scale.threads
    shell:
        "{params.command}"


rule attacker:
    input:
        lambda w: [ancient(path) for path in results_of(w.attacker)]
    output:
        f"{RUNS}/attackers/{{attacker}}/results.json"
    params:
        command=lambda w: start_or_resume(scale.attacker_command(scale.attackers[w.attacker]))
    threads: scale.threads
    shell:
        "{params.command}"


rule cell:
    input:
        lambda w: inputs_if_missing(f"{RESULTS}/{w.cell}.json",
                                    f"{RUNS}/attackers/{scale.attacker_of(scale.cells[w.cell]).name}/results.json",
                                    f"{RUNS}/victim-{scale.victim_of(scale.cells[w.cell])}/results.json")
    output:
        f"{RESULTS}/{{cell}}.json"
    wildcard_constraints:
        cell="(?!again/).+_[^/]+_[0-9]+"
    params:
        attack=lambda w: command(scale.cell_command(scale.cells[w.cell])),
        collect=lambda w: collect_command(scale.cells[w.cell])
    threads: scale.threads
    shell:
        "{params.attack} && {params.collect}"


rule report:
    input:
        MEASURED,
        sorted(map(str, scale.again_folder.rglob("*.json"))),
        sorted(str(path) for path in Path(workflow.basedir).glob("*.py"))
    output:
        REPORT
    params:
        command=command(["-m", "reproduce.report", str(NAME)])
    shell:
        "{params.command}"
