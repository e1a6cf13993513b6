"""Models, versions and deployments in the store: what the API serves, mirrored from MLflow's registry."""

import time
from typing import Any

from sqlalchemy import Connection, insert, select, update

from service.database import Database, count_up, read_counter, record
from service.errors import Conflict, NotFound
from service.records import DeploymentRecord, ModelRecord, Page, VersionRecord
from service.store_jobs import get_job
from service.tables import datasets, deployments, jobs, models, versions

_DEPLOYMENTS_COUNTER = "deployments"


class ModelStore:
    """Statements over models."""

    database: Database

    def record_version(self, job_id: str, version: int) -> VersionRecord:
        """The version that MLflow gave the job's model, made of what the job holds; once."""
        with self.database.write() as connection:
            job = get_job(connection, job_id)
            if job.model_name is None or job.result is None or job.artifact_sha256 is None:
                raise Conflict("nothing_to_register", f"{job_id} has no model to register")
            found = connection.execute(select(versions).where(versions.c.job_id == job_id)).first()
            if found is None:
                known = connection.execute(select(models.c.name).where(models.c.name == job.model_name)).first()
                if known is None:
                    connection.execute(insert(models).values(name=job.model_name, created_at=time.time()))
                sha256 = connection.execute(select(datasets.c.sha256).where(datasets.c.id == job.dataset_id)).scalar()
                connection.execute(
                    insert(versions).values(
                        name=job.model_name,
                        version=version,
                        created_at=time.time(),
                        job_id=job_id,
                        run_id=job.run_id,
                        artifact_sha256=job.artifact_sha256,
                        signature=(job.model_metadata or {})["signature"],
                        metadata=job.metadata,
                        metrics=job.metrics,
                        result=job.result,
                        dataset_id=job.dataset_id,
                        dataset_sha256=sha256 or "",
                        split=job.spec["split"],
                    )
                )
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(model_version=version))
            return _version(connection, job.model_name, version)

    def list_models(self, limit: int, after: str | None = None) -> Page:
        """Newest first, from behind the name `after`."""
        with self.database.read() as connection:
            query = select(models).order_by(models.c.number.desc()).limit(limit + 1)
            if after is not None:
                query = query.where(models.c.number < _model(connection, after).number)
            rows = connection.execute(query).all()
        return Page([record(ModelRecord, row) for row in rows[:limit]], len(rows) > limit)

    def get_model(self, name: str) -> ModelRecord:
        """Raises NotFound."""
        with self.database.read() as connection:
            return _model(connection, name)

    def list_versions(self, name: str) -> list[VersionRecord]:
        """All versions of a model, newest first. Raises NotFound."""
        with self.database.read() as connection:
            _model(connection, name)
            query = select(versions).where(versions.c.name == name).order_by(versions.c.version.desc())
            return [record(VersionRecord, row) for row in connection.execute(query)]

    def get_version(self, name: str, version: int) -> VersionRecord:
        """Raises NotFound."""
        with self.database.read() as connection:
            return _version(connection, name, version)

    def deploy(self, name: str, version: int, actor: str, force: bool = False, action: str = "deploy") -> ModelRecord:
        """Point `production` at `version`, at once. Conflict signature_changed, unless `force`."""
        with self.database.write() as connection:
            model, wanted = _model(connection, name), _version(connection, name, version)
            if model.production_version == version:
                return model
            if model.production_version is not None and not force:
                served = _version(connection, name, model.production_version)
                if served.signature != wanted.signature:
                    raise Conflict(
                        "signature_changed",
                        f"version {version} of {name} takes other inputs or gives other outputs than version "
                        f'{served.version}, which is deployed; deploy it with "force": true if its callers are ready',
                    )
            return _move(connection, model, version, action, actor)

    def undeploy(self, name: str, actor: str) -> ModelRecord:
        """Serve no version any more."""
        with self.database.write() as connection:
            model = _model(connection, name)
            return model if model.production_version is None else _move(connection, model, None, "delete", actor)

    def rollback(self, name: str, actor: str) -> ModelRecord:
        """Serve the version that was deployed before the present one. Conflict nothing_to_roll_back_to."""
        with self.database.write() as connection:
            model = _model(connection, name)
            query = (
                select(deployments.c.from_version)
                .where(
                    deployments.c.name == name,
                    deployments.c.to_version == model.production_version,
                    deployments.c.from_version.is_not(None),
                )
                .order_by(deployments.c.number.desc())
                .limit(1)
            )
            before = connection.execute(query).scalar()
            if model.production_version is None or before is None:
                raise Conflict("nothing_to_roll_back_to", f"no version of {name} was deployed before this one")
            return _move(connection, model, int(before), "rollback", actor)

    def list_deployments(self, name: str, limit: int) -> list[DeploymentRecord]:
        """The moves of `production`, newest first. Raises NotFound."""
        with self.database.read() as connection:
            _model(connection, name)
            query = select(deployments).where(deployments.c.name == name).order_by(deployments.c.number.desc())
            return [record(DeploymentRecord, row) for row in connection.execute(query.limit(limit))]

    def last_deployment_number(self) -> int:
        """A number that rises with every move of any model's `production`: cheap to watch."""
        with self.database.read() as connection:
            return read_counter(connection, _DEPLOYMENTS_COUNTER)

    def all_models(self) -> list[ModelRecord]:
        """Every model."""
        with self.database.read() as connection:
            return [record(ModelRecord, row) for row in connection.execute(select(models).order_by(models.c.number))]

    def pending_aliases(self) -> list[ModelRecord]:
        """Models whose `production` has moved here, and not yet in MLflow."""
        query = select(models).where(models.c.synced_number < models.c.deployment_number).order_by(models.c.number)
        with self.database.read() as connection:
            return [record(ModelRecord, row) for row in connection.execute(query)]

    def set_alias_synced(self, name: str, deployment_number: int) -> None:
        """MLflow's alias has followed up to that move."""
        with self.database.write() as connection:
            connection.execute(
                update(models)
                .where(models.c.name == name, models.c.synced_number < deployment_number)
                .values(synced_number=deployment_number)
            )

    def alias_moved(self, name: str, version: int | None) -> ModelRecord | None:
        """Follow MLflow's alias, which somebody moved there; None when a move from here is still on its way, when it
        points there already, or at a version that is not ours."""
        with self.database.write() as connection:
            model = _model(connection, name)
            if model.synced_number < model.deployment_number or model.production_version == version:
                return None
            if version is not None:
                query = select(versions.c.number).where(versions.c.name == name, versions.c.version == version)
                if connection.execute(query).first() is None:
                    return None
            moved = _move(connection, model, version, "followed", "mlflow")
            connection.execute(
                update(models).where(models.c.name == name).values(synced_number=moved.deployment_number)
            )
            return moved


def _model(connection: Connection, name: str) -> ModelRecord:
    row: Any = connection.execute(select(models).where(models.c.name == name)).first()
    if row is None:
        raise NotFound("model", name)
    return record(ModelRecord, row)


def _version(connection: Connection, name: str, version: int) -> VersionRecord:
    query = select(versions).where(versions.c.name == name, versions.c.version == version)
    row: Any = connection.execute(query).first()
    if row is None:
        raise NotFound("model version", f"{name}/{version}")
    return record(VersionRecord, row)


def _move(connection: Connection, model: ModelRecord, version: int | None, action: str, actor: str) -> ModelRecord:
    connection.execute(
        insert(deployments).values(
            name=model.name,
            created_at=time.time(),
            action=action,
            actor=actor,
            from_version=model.production_version,
            to_version=version,
        )
    )
    connection.execute(
        update(models)
        .where(models.c.name == model.name)
        .values(production_version=version, deployment_number=model.deployment_number + 1)
    )
    count_up(connection, _DEPLOYMENTS_COUNTER)
    return _model(connection, model.name)
