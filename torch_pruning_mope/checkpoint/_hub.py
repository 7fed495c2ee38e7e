"""Saving, loading and sharing, by the conventions of huggingface_hub's mixins.

Not one of them: theirs deletes the old configuration before it saves, and does not check it when it loads.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import HfApi
from torch import nn

from ..encoder import EncoderCore
from ._load import fetch, read
from ._save import save

_EncoderT = TypeVar("_EncoderT", bound="HubMixin")


class HubMixin(EncoderCore):
    """The part of a dual encoder that saves, loads and shares it."""

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        base: str | Path | None = None,
        metrics: Mapping[str, float] | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Writes the pruned model as a checkpoint: ``config.json``, ``model.safetensors`` and ``README.md``, a model card.

        The checkpoint is complete: it holds the architecture of the original, its preprocessing and its tokenizer. It is
        written whole or not at all, also if the process is killed. Other files of the folder stay.

        Args:
            folder: The target; made if it does not exist.
            base: Name of the model before it was pruned, as :func:`torch_pruning_mope.load_model` takes it
                (``"ViT-B-16-SigLIP@webli"``), or the checkpoint that it came from. Not needed for the tiny CLIP, nor if
                :meth:`from_pretrained` loaded it. Models of transformers describe themselves, but not their tokenizer. A
                checkpoint of a model of your own needs a fresh one to be loaded.
            metrics: Figures for the model card.
            cache_dir: Folder of the downloaded configuration and tokenizer of ``base``.
        """
        cache = None if cache_dir is None else str(Path(cache_dir).expanduser())
        save(self, Path(folder).expanduser(), base=base, metrics=metrics, cache=cache)

    @classmethod
    def from_pretrained(
        cls: type[_EncoderT],
        path_or_repo: str | Path,
        *,
        model: nn.Module | None = None,
        device: str | torch.device = "cpu",
        **download: Any,
    ) -> _EncoderT:
        """Loads a checkpoint of :meth:`save_pretrained`; the encoder can be pruned on and saved again.

        Args:
            path_or_repo: A folder, or a repository of the Hub.
            model: For models of your own: the original with any weights, not wrapped yet. It is mutated.
            device: Device of the model.
            **download: Options of ``huggingface_hub.snapshot_download``: ``revision``, ``cache_dir``, ``token`` and so on.

        Returns:
            The encoder; its model is in evaluation mode and of the type that it was saved in.

        Raises:
            ModelLoadError: If there is no such checkpoint, or it is damaged, of another version, or not what it says.
        """
        encoder, checkpoint = read(fetch(path_or_repo, **download), cls, model)
        encoder.model.to(device)
        encoder.origin = checkpoint.base
        return cast("_EncoderT", encoder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base: str | Path | None = None,
        metrics: Mapping[str, float] | None = None,
        cache_dir: str | Path | None = None,
        commit_message: str = "Add a model pruned with torch-pruning-mope",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Uploads the pruned model as a checkpoint to the Hugging Face Hub, in one commit.

        Args:
            repo_id: Name of the repository; made if it does not exist.
            base: See :meth:`save_pretrained`.
            metrics: See :meth:`save_pretrained`.
            cache_dir: See :meth:`save_pretrained`.
            commit_message: Message of the commit.
            private: Makes a new repository private; None for the owner's default.
            token: Token of the Hub; by default that of the user who is logged in.
            branch: Branch to commit to.
            create_pr: Opens a pull request instead.

        Returns:
            The address of the commit.
        """
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, base=base, metrics=metrics, cache_dir=cache_dir)
            repository = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            return str(
                api.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=branch,
                    create_pr=create_pr,
                )
            )
