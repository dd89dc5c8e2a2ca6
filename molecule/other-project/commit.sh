#!/usr/bin/env bash
# Commit the files of a folder to PLACE/repo.git as a version: commit.sh TAG FOLDER PLACE
# uv.lock is made here and not kept with the project, since it names the package index of the machine it is made on.
set -euo pipefail
tag=$1 folder=$2 place=$3

mkdir -p "$place/work"
cp -R "$folder/." "$place/work"
cd "$place/work"
UV_SYSTEM_CERTS=true uv lock --quiet --project backend
git init --quiet --initial-branch main .
git add --all
git -c user.name=Test -c user.email=test@example.org commit --quiet --message "Version $tag"
git tag "$tag"
[ -d ../repo.git ] || git init --quiet --bare --initial-branch main ../repo.git
git push --quiet ../repo.git main "$tag"
