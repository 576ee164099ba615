# The rules of table 2 of the first paper. Snakefile defines what they share with the other forms.
wildcard_constraints:
    model="(victim|shadow)-[^/]+",
    attacker="[^/]+",

def results_of(attacker):
    """results.json of each shadow of an attacker."""
    return [f"{RUNS}/shadow-{name}/results.json" for name in scale.shadow_names(scale.attackers[attacker])]


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


rule report:
    input:
        MEASURED,
        PACKED,
        sorted(map(str, scale.again_folder.rglob("*.json*"))),
        sorted(str(path) for path in Path(workflow.basedir).glob("*.py"))
    output:
        REPORT
    params:
        command=command(["-m", "reproduce.report", str(NAME)])
    shell:
        "{params.command}"
