#!/usr/bin/env bash
# Extract an earlier Seedbed from git's history into a folder: extract.sh REVISION FOLDER
set -euo pipefail
revision=$1 folder=$2
cd "$(dirname "$0")/../.."

if ! git cat-file -e "$revision^{commit}" 2>/dev/null; then
  echo "The commit $revision is not in this clone, so there is nothing to upgrade from. Type: git fetch --unshallow" >&2
  exit 1
fi
rm -rf "$folder"
mkdir -p "$folder"
git archive "$revision" | tar --extract --directory "$folder"
