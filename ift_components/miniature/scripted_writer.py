"""`ift_generate_recipe` with a scripted writer, who answers with sentences of caption and context.

python -m ift_components.miniature.scripted_writer --config generate.yaml data=PREPARED output_dir=OUT \
    template=detailed_description server.model=writer
"""

from ift_components.config import entry_point
from ift_components.generation.build import GenerateSettings, generate
from ift_components.miniature.scripted import scripted_server


@entry_point(GenerateSettings)
def main(cfg: GenerateSettings) -> None:
    """Generate descriptions or questions by a scripted writer."""
    # Beside the result: several runs about one folder would wait for each other's file.
    cfg.replies = cfg.replies or f"{cfg.output_dir}.replies.jsonl"
    with scripted_server() as server:
        cfg.server.base_url = server.url
        manifest = generate(cfg.data, cfg.output_dir, cfg)
    print(f"{manifest['generation']['kept']} questions")


if __name__ == "__main__":
    main()
