# The rules of table 1 of the second paper. Snakefile defines what they share with the other forms.
wildcard_constraints:
    model="[^/]+",


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


rule dimension:  # the attack has stored the outputs
    input:
        lambda w: inputs_if_missing(f"{RESULTS}/dimension/{w.model}.json", scale.reconstruction_of(w.model))
    output:
        f"{RESULTS}/dimension/{{model}}.json"
    params:
        command=lambda w: command(scale.dimension_command(w.model))
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
