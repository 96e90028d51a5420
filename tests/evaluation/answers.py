"""Answers as models write them, each with the letter that a careful person reads, or `-` where none is given unmistakably."""

# ruff: noqa: RUF001 (the signs that models write)

OPTIONS = {
    "size": ["big", "small"],
    "tumour": ["benign", "malignant"],
    "colour": ["blue", "light blue", "purple blue"],
    "nucleus": [
        "irregular",
        "segmented-bilobed",
        "segmented-multilobed",
        "unsegmented-band",
        "unsegmented-indented",
    ],
    "yes": ["yes", "no"],
    "shape": ["oval", "round", "irregular", "lobulated", "architectural distortion"],
}

ANSWERS = {
    "size": """
The correct answer is B. | B
The correct answer is A. | A
The correct answer is [B]. | B
The correct answer is [A] | A
the correct answer is (b) | B
The correct answer is: B | B
The correct answer is - B | B
The correct answer is "B". | B
The correct answer is “B”. | B
The correct answer is ‘A’. | A
The correct answer is **B**. | B
The correct answer is __B__ | B
The correct answer is `B` | B
The correct answer is \\boxed{B} | B
\\boxed{B} | B
$\\boxed{A}$ | A
\\boxed{\\text{B}} | B
\\(\\boxed{B}\\) | B
__B__ | B
**B** | B
*B* | B
_B_ | B
`B` | B
"B" | B
«B» | B
„B“ | B
'B' | B
B | B
b | B
B. | B
B) | B
(B) | B
[B] | B
{B} | B
(b) | B
b) | B
B: | B
B! | B
B, | B
B\\n | B
Ｂ | B
  A   | A
A | A
a | A
a. | A
B. small | B
B) small | B
B: small | B
B - small | B
B – small | B
B — small | B
(B) small | B
[B] small | B
**B. small** | B
**B**: small | B
b. small | B
A. big | A
A) Big | A
B. small\\nThe cell is small. | B
B small | B
Answer: B | B
Answer - B | B
Answer = B | B
Answer → B | B
ANSWER: B | B
answer: b | B
Answer: (B) | B
Answer: B. small | B
**Answer:** B | B
**Answer: B** | B
Final answer: B | B
Final Answer: **B** | B
The answer is B | B
The answer is option B. | B
The answer would be B. | B
The answer should be B. | B
My answer is B. | B
Option B | B
Option B. | B
Option (B) | B
Option B is correct. | B
option b | B
Choice B | B
Letter B | B
I choose B. | B
I would choose B. | B
I select option B. | B
I pick A. | A
I would go with B. | B
B is correct. | B
B is the correct answer. | B
B is the best answer. | B
B, because the cell is tiny. | B
B because it is tiny | B
B since the cell is tiny. | B
It must be (B). | B
Option B because the cell is tiny. | B
Based on the image, the correct answer is B. | B
Looking at the picture, I see one cell.\\n\\nB. small | B
Looking at the picture, I see one cell.\\n\\nThe correct answer is B. | B
{"answer": "B"} | B
{"answer": "B", "confidence": 0.9} | B
<answer>B</answer> | B
<answer> B </answer> | B
The correct choice is B. | B
The right option is B. | B
small | B
Small. | B
SMALL | B
It is small. | B
It is SMALL! | B
The cell is small. | B
The cell size is big. | A
The cell is small 😀 | B
A small cell | B
A big one | A
The answer is a small cell. | B
The answer is small. | B
Answer: small | B
“small” | B
The cell is *small*. | B
It's a big cell. | A
The size of the cell is small, as the picture shows. | B
It is small, not big. | B
It is small rather than big. | B
It is not big, it is small. | B
Not A, but B is correct. | B
The answer is B, not A. | B
The correct answer is B and not A. | B
A is incorrect; the answer is B. | B
A is wrong, B is correct. | B
Option A is not correct; option B is. | B
There is no doubt that the answer is B. | B
Without a doubt the cell is small. | B
<think>It could be A. The cell is big?</think>The correct answer is B. | B
<think>maybe A</think>\\n\\nB | B
Let me see: the answer is A?</think>The correct answer is B. | B
<thinking>A or B</thinking> B | B
A. big\\nB. small\\nThe correct answer is B. | B
The correct answer is [A or B].\\nThe correct answer is B. | B
The correct answer is B. The correct answer is B. | B
The correct answer is B.B | B
The correct answer is A. No, the correct answer is B. | -
A. Wait, actually B. | -
The answer is A. Actually, B. | -
A. On second thought, B. | -
The answer is B. Wait, it's B. | B
<think>It is B because the cell is small | -
A or B | -
A and B | -
A/B | -
A, B | -
Both A and B | -
Either A or B. | -
The correct answer is A or B. | -
The correct answer is [A or B]. | -
The answer could be A or B | -
A. big\\nB. small | -
A. big B. small | -
Options: A. big, B. small | -
A) big\\nB) small | -
What is the cell size?\\nA. big\\nB. small | -
big or small | -
big, small | -
neither big nor small | -
The cell is neither big nor small. | -
not big | -
The cell is not small. | -
The cell isn't big. | -
The cell isn’t big. | -
It is not A. | -
Not B. | -
A is incorrect. | -
A is wrong. | -
B is not correct. | -
B is false. | -
Option B is incorrect | -
Option A is wrong. | -
The answer is not B. | -
The correct answer is not A. | -
The answer isn't B. | -
It cannot be B. | -
I can rule out B. | -
B can be ruled out. | -
I don't think it is B. | -
I am not sure whether it is B. | -
B is unlikely. | -
D | -
D. | -
The correct answer is D. | -
The correct answer is C. | -
The correct answer is D. small | -
The correct answer is B. big | -
A. small | -
B) big | -
Answer: A small cell | -
The answer is A. The cell is small. | -
I cannot tell. | -
None of the above | -
Neither. | -
I don't know | -
I'm sorry, but I can't help with that. | -
I am unable to see the image. | -
A cell | -
a cell with a nucleus | -
As an assistant I do not give diagnoses. | -
In this image a cell is shown. | -
nonsense about unsmall things | -
bigger | -
smallish | -
See figure A. | -
As in Fig. (B), the cell is round. | -
 | -
. | -
正解は小さい 😀 | -
1 | -
2. | -
""",
    "tumour": """
malignant | B
The lesion is malignant. | B
not malignant | -
The lesion is not malignant. | -
This is not benign. | -
It isn't malignant. | -
no sign of a malignant lesion | -
There is no evidence that it is malignant. | -
without malignant features | -
The lesion is benign, not malignant. | A
The lesion is not malignant but benign. | A
The lesion is benign rather than malignant. | A
benign instead of malignant | A
unlikely to be malignant | -
A malignant process can be excluded. | -
Malignant is ruled out. | -
It is either benign or malignant. | -
non-malignant | -
The mass looks benign. | A
pathology: benign | A
B. malignant | B
The correct answer is B. The lesion is malignant. | B
The correct answer is A. It is not malignant. | A
The correct answer is A. It is malignant. | -
""",
    "colour": """
light blue | B
The cytoplasm is light\\nblue. | B
Light Blue. | B
blue | A
It is blue. | A
purple blue | C
The colour is purple blue, not light blue. | C
blue or light blue | -
light blue or purple blue | -
The answer is A light blue | -
The correct answer is A. light blue | -
The answer is a light blue tone | B
The correct answer is C. | C
C. purple blue | C
A. blue\\nB. light blue\\nC. purple blue | -
A. blue\\nB. light blue\\nC. purple blue\\n\\nAnswer: C | C
The correct answer is [A or B or C]. | -
not blue, light blue | B
bluish | -
A, B, or C | -
B or C | -
""",
    "nucleus": """
segmented-bilobed nucleus | B
The nucleus is unsegmented-band. | D
E. unsegmented-indented | E
bilobed | -
segmented | -
The correct answer is E. | E
F | -
The nucleus is irregular, neither unsegmented-band nor unsegmented-indented. | A
B and C | -
(D) | D
""",
    "yes": """
yes | A
no | B
Yes. | A
No. | B
No, there is none. | B
Yes, it is granular. | A
The correct answer is B. | B
The answer is no. | B
Answer: yes | A
Yes, there is no doubt | -
yes or no | -
B. no | B
A. yes | A
A. no | -
It has granules: yes | A
""",
    "shape": """
The correct answer is E. architectural distortion | E
architectural distortion | E
The mass is round. | B
round or oval | -
The shape is not round but oval. | A
The mass is oval, not round, not lobulated. | A
irregular and lobulated | -
C is correct because A does not fit. | C
C. A and B do not fit. | C
B is correct since the outline is even. | B
A and B are wrong, so the answer is C. | C
I would go with option D, lobulated. | D
D – lobulated | D
The answer is D (lobulated). | D
Answer: [D] lobulated | D
grade A | -
A round mass | B
An oval mass is shown. | A
I think E | -
My choice: E | E
""",
}


def table():
    """Return rows of answer, options and the index of the right reading or None."""
    rows = []
    for name, block in ANSWERS.items():
        for line in block.strip("\n").split("\n"):
            text, _, letter = line.rpartition(" | ")
            if not _:
                text, letter = "", line.split("|")[1].strip()
            reading = None if letter == "-" else "ABCDE".index(letter)
            rows.append((text.replace("\\n", "\n").replace("\\\\", "\\"), OPTIONS[name], reading))
    return rows
