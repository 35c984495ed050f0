"""IJB-B and IJB-C lists in InsightFace's layout: images with landmarks, templates and media, pairs, galleries, probes.

    meta/ijbc_name_5pts_score.txt       name, five landmarks (x y), detection score
    meta/ijbc_face_tid_mid.txt          name, template, medium
    meta/ijbc_template_pair_label.txt   template, template, 1 (one subject) or 0
    meta/ijbc_1N_gallery_G1.csv, ijbc_1N_gallery_G2.csv, ijbc_1N_probe_mixed.csv   TEMPLATE_ID, SUBJECT_ID, ...
    loose_crop/                         the images

IJB-B has `ijbb` and the galleries S1 and S2. N images, M rows of the list of media, T templates, P pairs, K templates
of a list, 52 five points (x, y).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.utils.tables import read_chunks
from recordio_tools.bounded_io import open_regular_file
from recordio_tools.lists import check_relative, read_lines

IMAGE_FOLDER = "loose_crop"
_GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
_LANDMARK_FIELDS, _MEDIA_FIELDS, _PAIR_FIELDS = 12, 3, 3
# int64 holds 18 digits.
_NUMBER = re.compile(r"[0-9]{1,18}")
_CHUNK_BYTES, _CHUNK_LINES = 1 << 24, 1 << 15
_MAX_LINE_BYTES = 1 << 16
_IS_DIGIT = np.zeros(256, dtype=bool)
_IS_DIGIT[ord("0") : ord("9") + 1] = True
_IS_ALLOWED = _IS_DIGIT.copy()
_IS_ALLOWED[[ord(letter) for letter in " \t\r\n"]] = True


@dataclass(frozen=True, eq=False)
class LandmarkList:
    """Images in the order of their list: names, landmarks in pixels, float64 [N,5,2], and detection scores [N]."""

    names: list[str]
    landmark_N52: np.ndarray
    score_N: np.ndarray


@dataclass(frozen=True, eq=False)
class TemplateMedia:
    """Rows of the list of media: image (position in the list of images), template and medium, int64 [M] each.

    `template_T` are the distinct templates in ascending order; `row_M` is the position of a row's template in it.
    """

    image_M: np.ndarray
    row_M: np.ndarray
    medium_M: np.ndarray
    template_T: np.ndarray

    @property
    def media(self) -> int:
        """Number of media, each counted once in every template that has it."""
        return len(np.unique(np.stack([self.row_M, self.medium_M], axis=1), axis=0))


@dataclass(frozen=True, eq=False)
class TemplatePairs:
    """Pairs of templates by their positions in `TemplateMedia.template_T`, int32 [P], and their labels, bool [P]."""

    left_P: np.ndarray
    right_P: np.ndarray
    same_P: np.ndarray


@dataclass(frozen=True, eq=False)
class TemplateSubjects:
    """Templates of a list, as positions in `TemplateMedia.template_T`, and their subjects, [K].

    `name` is that of the gallery, or `probes`.
    """

    name: str
    row_K: np.ndarray
    subject_K: np.ndarray


@dataclass(frozen=True)
class IjbFolder:
    """Paths of an IJB-B or IJB-C folder; `name` is `ijbb` or `ijbc`. `open` finds out which of them it is."""

    root: Path
    name: str

    @classmethod
    def open(cls, root: Path) -> "IjbFolder":
        """Returns the folder with its name. Raises UserError unless it has the lists of exactly one of both sets."""
        root = Path(root)
        names = [name for name in _GALLERIES if (root / "meta" / f"{name}_face_tid_mid.txt").exists()]
        if len(names) != 1:
            files = " and ".join(f"meta/{name}_face_tid_mid.txt" for name in _GALLERIES)
            count = "both" if names else "neither"
            raise UserError(
                f"{root}: has {count} of {files}; name the folder of IJB-B or of IJB-C, with meta and images"
            )
        return cls(root, names[0])

    @property
    def title(self) -> str:
        """`IJB-B` or `IJB-C`."""
        return f"IJB-{self.name[-1].upper()}"

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.root / IMAGE_FOLDER

    @property
    def landmark_list(self) -> Path:
        """List of images with landmarks and scores."""
        return self._meta("name_5pts_score.txt")

    @property
    def media_list(self) -> Path:
        """List of images with templates and media."""
        return self._meta("face_tid_mid.txt")

    @property
    def pair_list(self) -> Path:
        """List of pairs of templates."""
        return self._meta("template_pair_label.txt")

    @property
    def gallery_lists(self) -> dict[str, Path]:
        """Lists of both galleries by name."""
        return {name: self._meta(f"1N_gallery_{name}.csv") for name in _GALLERIES[self.name]}

    @property
    def probe_list(self) -> Path:
        """List of the probes of 1:N identification."""
        return self._meta("1N_probe_mixed.csv")

    @property
    def has_identification(self) -> bool:
        """True if a list of 1:N identification is there. Raises UserError if some of the three lists are missing."""
        paths = [*self.gallery_lists.values(), self.probe_list]
        missing = [path for path in paths if not path.exists()]
        if missing and len(missing) < len(paths):
            raise UserError(f"{missing[0]}: no such file; 1:N identification needs both galleries and the probes")
        return not missing

    @property
    def lists(self) -> list[Path]:
        """All lists that an evaluation reads."""
        identification = [*self.gallery_lists.values(), self.probe_list] if self.has_identification else []
        return [self.landmark_list, self.media_list, self.pair_list, *identification]

    def _meta(self, ending: str) -> Path:
        return self.root / "meta" / f"{self.name}_{ending}"


@dataclass(frozen=True, eq=False)
class IjbLists:
    """All lists of a folder; `galleries` is empty and `probes` None without the lists of 1:N identification.

    `subject_T` is the subject of each template in those lists, -1 for a template in none of them.
    """

    folder: IjbFolder
    images: LandmarkList
    media: TemplateMedia
    pairs: TemplatePairs
    galleries: tuple[TemplateSubjects, ...]
    probes: TemplateSubjects | None
    subject_T: np.ndarray

    @classmethod
    def read(cls, folder: IjbFolder) -> "IjbLists":
        """Reads and compares all lists. Raises UserError naming the list, and the line at fault."""
        images = read_landmark_list(folder.landmark_list)
        media = read_media_list(folder.media_list, images, folder.landmark_list)
        subject_T = np.full(len(media.template_T), -1, dtype=np.int64)
        galleries, probes = (), None
        if folder.has_identification:
            terms = media.template_T, folder.media_list
            galleries = tuple(read_subject_list(path, name, *terms) for name, path in folder.gallery_lists.items())
            probes = read_subject_list(folder.probe_list, "probes", *terms)
            paths = [*folder.gallery_lists.values(), folder.probe_list]
            for path, part in zip(paths, (*galleries, probes), strict=True):
                _add_subjects(path, part, media.template_T, subject_T)
            if not np.isin(probes.subject_K, np.concatenate([gallery.subject_K for gallery in galleries])).any():
                raise UserError(f"{folder.probe_list}: no probe has its subject in a gallery; use lists of one set")
        pairs = read_pair_list(folder.pair_list, media.template_T, folder.media_list)
        return cls(folder, images, media, pairs, galleries, probes, subject_T)


def _add_subjects(path: Path, part: TemplateSubjects, template_T: np.ndarray, subject_T: np.ndarray) -> None:
    """Sets the subjects of a list's templates. Raises UserError for a template of another subject in another list."""
    is_other_K = (subject_T[part.row_K] != -1) & (subject_T[part.row_K] != part.subject_K)
    if is_other_K.any():
        row, subject = part.row_K[np.argmax(is_other_K)], part.subject_K[np.argmax(is_other_K)]
        raise UserError(
            f"{path}: the template {template_T[row]} is of the subject {subject}, in another list of {subject_T[row]}"
        )
    subject_T[part.row_K] = part.subject_K


def read_landmark_list(path: Path) -> LandmarkList:
    """Reads names, landmarks and detection scores, separated by blanks.

    Raises UserError naming the line: another number of fields, a number that is not finite, a negative score, landmarks
    that coincide, a name that leads out of the folder or is listed twice.
    """
    lines, names, parts = read_lines(path), [], []
    # In chunks: all fields as texts would take a gigabyte.
    for start in range(0, len(lines), _CHUNK_LINES):
        rows = [line.split() for line in lines[start : start + _CHUNK_LINES]]
        _check_fields(path, rows, _LANDMARK_FIELDS, "a name, ten numbers of landmarks and a score", start + 1)
        names += [row[0] for row in rows]
        parts.append(_finite_numbers(path, [row[1:] for row in rows], start + 1))
    check_relative(path, names)
    _check_distinct(path, names, "the image {} is listed twice")
    value_NV = np.concatenate(parts)
    landmark_N52, score_N = value_NV[:, :10].reshape(-1, 5, 2), value_NV[:, 10]
    if (negative_N := score_N < 0).any():
        line = int(np.argmax(negative_N)) + 1
        raise UserError(f"{path}, line {line}: the detection score {score_N[line - 1]:g} is negative")
    if (point_N := np.ptp(landmark_N52, axis=1).max(axis=1) < 1e-3).any():
        line = int(np.argmax(point_N)) + 1
        raise UserError(f"{path}, line {line}: the landmarks coincide, so that the face cannot be aligned")
    return LandmarkList(names, landmark_N52, score_N)


def read_media_list(path: Path, images: LandmarkList, image_list: Path) -> TemplateMedia:
    """Reads the template and the medium of each image; an image may belong to several templates.

    Raises UserError naming the line: another number of fields, a number that is not a whole one, an image that
    `image_list` lacks or that is twice in a template; and the line of an image of `image_list` without a template.
    """
    rows = [line.split() for line in read_lines(path)]
    _check_fields(path, rows, _MEDIA_FIELDS, "a name, a template and a medium")
    for line, row in enumerate(rows, start=1):
        if not (_NUMBER.fullmatch(row[1]) and _NUMBER.fullmatch(row[2])):
            raise UserError(
                f"{path}, line {line}: expected whole numbers for template and medium, found {' '.join(row[1:])[:80]!r}"
            )
    position = {name: row for row, name in enumerate(images.names)}
    for line, row in enumerate(rows, start=1):
        if row[0] not in position:
            raise UserError(f"{path}, line {line}: the image {row[0][:120]} is not listed in {image_list}")
    _check_distinct(path, [(row[0], row[1]) for row in rows], "the image {0[0]} is twice in the template {0[1]}")
    image_M = np.array([position[row[0]] for row in rows], dtype=np.int64)
    template_M, medium_M = (np.array([row[column] for row in rows]).astype(np.int64) for column in (1, 2))
    is_used_N = np.zeros(len(images.names), dtype=bool)
    is_used_N[image_M] = True
    if not is_used_N.all():
        line = int(np.argmin(is_used_N)) + 1
        raise UserError(f"{image_list}, line {line}: the image {images.names[line - 1]} has no template in {path}")
    template_T, row_M = np.unique(template_M, return_inverse=True)
    return TemplateMedia(image_M, row_M, medium_M, template_T)


def read_pair_list(path: Path, template_T: np.ndarray, media_list: Path) -> TemplatePairs:
    """Reads the pairs in chunks: 15.7 million take seconds, and a few hundred megabytes.

    Raises UserError naming the line: anything but three whole numbers, a label that is not 0 or 1, or a template that
    `media_list` lacks; and a list without mated or without non-mated pairs.
    """
    parts = []
    for line_P, value_P3 in _iterate_numbers(path, _PAIR_FIELDS):
        if (wrong_P := value_P3[:, 2] > 1).any():
            row = int(np.argmax(wrong_P))
            raise UserError(f"{path}, line {line_P[row]}: the label {value_P3[row, 2]} is neither 0 nor 1")
        columns = [_positions(path, line_P, value_P3[:, side], template_T, media_list) for side in (0, 1)]
        parts.append((*(column_P.astype(np.int32) for column_P in columns), value_P3[:, 2] == 1))
    if not parts:
        raise UserError(f"{path}: the list is empty; each line names two templates and a label")
    pairs = TemplatePairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if pairs.same_P.all() or not pairs.same_P.any():
        missing = "non-mated" if pairs.same_P.all() else "mated"
        raise UserError(f"{path}: none of the {len(pairs.same_P):,} pairs is {missing}; verification needs both")
    return pairs


def read_subject_list(path: Path, name: str, template_T: np.ndarray, media_list: Path) -> TemplateSubjects:
    """Reads the templates of a gallery or of the probes, each once, with their subjects, from a CSV file.

    Its other columns are ignored; a template has a row for each of its images. Raises UserError naming the line: a
    number that is not a whole one, a template that `media_list` lacks, a template of two subjects; an empty list.
    """
    needed = ("template_id", "subject_id")
    lines, ids = [], ([], [])
    for part in read_chunks(path, needed):
        lines += part.line_N
        for column, values in zip(needed, ids, strict=True):
            texts = [text.strip() for text in part.columns[column]]
            for line, text in zip(part.line_N, texts, strict=True):
                if not _NUMBER.fullmatch(text):
                    raise UserError(f"{path}, line {line}: the {column} {text[:80]!r} is not a whole number")
            values += texts
    if not lines:
        raise UserError(f"{path}: lists no template")
    template_R, subject_R = (np.array(values).astype(np.int64) for values in ids)
    row_R = _positions(path, lines, template_R, template_T, media_list)
    row_K, first_K, index_R = np.unique(row_R, return_index=True, return_inverse=True)
    if (other_R := subject_R != subject_R[first_K][index_R]).any():
        row = int(np.argmax(other_R))
        raise UserError(
            f"{path}, line {lines[row]}: the template {template_R[row]} is of the subject {subject_R[row]}, on another "
            f"line of {subject_R[first_K][index_R[row]]}"
        )
    return TemplateSubjects(name, row_K, subject_R[first_K])


def _positions(path: Path, lines, template_R: np.ndarray, template_T: np.ndarray, media_list: Path) -> np.ndarray:
    """Returns the positions of templates in `template_T`. Raises UserError naming the line of one that is not there."""
    row_R = np.minimum(np.searchsorted(template_T, template_R), len(template_T) - 1)
    if (absent_R := template_T[row_R] != template_R).any():
        row = int(np.argmax(absent_R))
        raise UserError(f"{path}, line {lines[row]}: the template {template_R[row]} has no image in {media_list}")
    return row_R


def _check_fields(path: Path, rows: list[list[str]], fields: int, expected: str, first_line: int = 1) -> None:
    for line, row in enumerate(rows, start=first_line):
        if len(row) != fields:
            raise UserError(f"{path}, line {line}: has {len(row)} fields; expected {fields}: {expected}")


def _check_distinct(path: Path, keys: list, message: str) -> None:
    if len(set(keys)) == len(keys):
        return
    seen = set()
    for line, key in enumerate(keys, start=1):
        if key in seen:
            raise UserError(f"{path}, line {line}: {message.format(key)}")
        seen.add(key)


def _finite_numbers(path: Path, rows: list[list[str]], first_line: int) -> np.ndarray:
    """Returns float64 numbers. Raises UserError naming the line of one that is not a number or not finite."""
    try:
        value_NV = np.array(rows, dtype=np.float64)
        wrong = None if np.isfinite(value_NV).all() else int(np.argmin(np.isfinite(value_NV).all(axis=1)))
    except ValueError:
        wrong = next(index for index, row in enumerate(rows) if not all(map(_is_number, row)))
    if wrong is not None:
        text = " ".join(rows[wrong])[:120]
        raise UserError(f"{path}, line {first_line + wrong}: expected finite numbers after the name, found {text!r}")
    return value_NV


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _iterate_numbers(path: Path, columns: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields line numbers [R] and whole numbers int64 [R,columns] of a list, in chunks; blank lines are skipped.

    Raises UserError naming the line with anything else.
    """
    first_line, rest = 1, b""
    try:
        with os.fdopen(open_regular_file(path), "rb") as file:
            while content := file.read(_CHUNK_BYTES):
                complete, newline, rest = (rest + content).rpartition(b"\n")
                if len(rest) > _MAX_LINE_BYTES:
                    raise UserError(f"{path}: a line has more than {_MAX_LINE_BYTES:,} bytes; it is no list of numbers")
                if newline:
                    yield from _parse_chunk(path, first_line, complete + newline, columns)
                    first_line += complete.count(b"\n") + 1
            if rest:
                yield from _parse_chunk(path, first_line, rest + b"\n", columns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _parse_chunk(path: Path, first_line: int, content: bytes, columns: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the rows of whole lines: at once if every line is as it should be, else after a look at each line."""
    line_R, is_regular = np.arange(first_line, first_line + content.count(b"\n")), _is_regular(content, columns)
    if not is_regular:
        kept, lines = [], content.split(b"\n")[:-1]
        for line, text in enumerate(lines, start=first_line):
            fields = text.split()
            if fields and (len(fields) != columns or not all(_NUMBER.fullmatch(f.decode("latin-1")) for f in fields)):
                shown = text[:120].decode("utf-8", "replace").strip()
                raise UserError(f"{path}, line {line}: expected {columns} whole numbers, found {shown!r}")
            if fields:
                kept.append(line)
        line_R, content = np.array(kept), b"\n".join(lines[line - first_line] for line in kept)
    if len(line_R):
        yield line_R, np.fromstring(content, dtype=np.int64, sep=" ").reshape(-1, columns)


def _is_regular(content: bytes, columns: int) -> bool:
    """Returns whether each line has that many numbers of at most 18 digits and nothing else."""
    byte_B = np.frombuffer(content, dtype=np.uint8)
    if not _IS_ALLOWED[byte_B].all():
        return False
    is_digit_B = _IS_DIGIT[byte_B]
    edge_E = np.flatnonzero(is_digit_B[1:] != is_digit_B[:-1]) + 1
    if is_digit_B[0]:
        edge_E = np.concatenate([[0], edge_E])
    (newline_R,) = np.nonzero(byte_B == ord("\n"))
    start_K, end_K = edge_E[0::2], edge_E[1::2]
    if len(start_K) != columns * len(newline_R) or (end_K - start_K > 18).any():
        return False
    start_RC = start_K.reshape(-1, columns)
    return bool((start_RC[:, -1] < newline_R).all() and (start_RC[1:, 0] > newline_R[:-1]).all())
