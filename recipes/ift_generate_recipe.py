"""Generate questions from the captions of a prepared folder by a language model, and leave out the doubtful ones.

tune run ift_generate_recipe --config generate.yaml data=PREPARED output_dir=OUT server.model=llama3.1
"""

from ift_components.config import entry_point
from ift_components.generation.build import GenerateSettings, generate


@entry_point(GenerateSettings)
def main(cfg: GenerateSettings) -> None:
    """Generate questions from the captions of a prepared folder by a language model."""
    manifest = generate(cfg.data, cfg.output_dir, cfg)
    outcome = manifest["generation"]
    print(
        f"{outcome['replies']} replies about {outcome['captions']} captions, {outcome['replies_complete']} of them whole"
    )
    print(f"{outcome['pairs']} pairs parsed")
    for reason, count in outcome["refused"].items():
        print(f"refused: {count} ({reason})")
    for name, reasons in outcome["filtered"].items():
        for reason, count in reasons.items():
            print(f"filtered by {name}: {count} ({reason})")
    reviewed = outcome["reviewed"]
    print(f"reviewed: {reviewed['keep']} kept, {reviewed['drop']} dropped")
    counts = ", ".join(f"{split} {count}" for split, count in manifest["counts"]["questions"].items())
    print(f"{outcome['kept']} questions: {counts}")


if __name__ == "__main__":
    main()
