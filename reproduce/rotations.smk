# The rules of a bed of models. Snakefile defines what they share with the other forms.
wildcard_constraints:
    model="[A-F][0-9]+(-[a-z0-9.-]+)?",
    attacker="[^/]+",


rule model:
    input:
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
        lambda w: [ancient(f"{RUNS}/{shadow.name}/results.json") for shadow in scale.attackers[w.attacker].shadows]
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
        sorted(str(path) for path in Path(workflow.basedir).glob("*.py"))
    output:
        REPORT
    params:
        command=command(["-m", "reproduce.report", str(NAME)])
    shell:
        "{params.command}"
